"""The laboratory: what each way to shrink an embedding table costs in quality, on real recommender data, at equal bytes.

One model for each data set; the embedding method is the only thing that changes. ``python -m benchmarks.quality`` runs the
tables of ``grid.py`` and goes on where it was stopped; ``python -m benchmarks.quality report`` writes docs/results.md.
"""
