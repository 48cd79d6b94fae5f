"""Compressing a table that is already trained: its rows' codes are stored, because hash functions cannot guess them."""

from __future__ import annotations

from hfh_embed.codec.compress import compress
from hfh_embed.codec.update import Update, update

__all__ = ["Update", "compress", "update"]
