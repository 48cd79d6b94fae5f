"""What the language model example is made of: text, tables of words, the model, how it is trained and judged."""
