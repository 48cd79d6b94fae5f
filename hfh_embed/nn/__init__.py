"""Torch layers whose tables are computed from one small pool.

from hfh_embed import nn as hnn

emb = hnn.HFHEmbedding(10_000_000, 64, ratio=100)       # where nn.Embedding stood
"""

from __future__ import annotations

from hfh_embed.errors import MissingDependencyError

try:
    import torch  # noqa: F401
except ImportError:
    raise MissingDependencyError("hfh_embed.nn needs torch; install it with: pip install 'hfh-embed[torch]'") from None

from hfh_embed.nn.embedding import HFHEmbedding, HFHEmbeddingBag
from hfh_embed.nn.io import load, save
from hfh_embed.nn.layers import HFHConv2d, HFHLinear
from hfh_embed.nn.optim import PoolAdam, PoolSGD
from hfh_embed.nn.pool import Pool
from hfh_embed.nn.replication import replicate
from hfh_embed.nn.swap import compress
from hfh_embed.nn.vocabulary import VocabularyHead

__all__ = [
    "HFHConv2d",
    "HFHEmbedding",
    "HFHEmbeddingBag",
    "HFHLinear",
    "Pool",
    "PoolAdam",
    "PoolSGD",
    "VocabularyHead",
    "compress",
    "load",
    "replicate",
    "save",
]
