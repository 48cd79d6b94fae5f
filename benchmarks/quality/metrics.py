"""What a ranking is worth: area under the curve, recall and normalised discounted cumulative gain."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["auc", "grouped_ndcg", "ndcg", "recall"]

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def auc(labels: Floats, scores: Floats) -> float:
    """The share of (positive, negative) pairs that are in the right order, ties half. Labels 0 and 1, (n,)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = float(labels.sum())
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def grouped_ndcg(labels: Floats, scores: Floats, groups: npt.NDArray[np.int64], k: int = 10) -> float:
    """NDCG@k of the ranking inside each group, mean over the groups that have a positive and a negative.

    Equal scores rank in a fixed random order, so that a constant score earns what chance does.
    """
    chance = np.random.default_rng(0).permutation(len(scores))
    order = np.lexsort((chance, -scores, groups))
    groups, labels = groups[order], labels[order]
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    sizes = np.diff(np.r_[starts, len(groups)])
    place = np.arange(len(groups)) - np.repeat(starts, sizes)
    discount = np.where(place < k, 1 / np.log2(place + 2), 0)
    gained = np.add.reduceat(labels * discount, starts)
    positives = np.add.reduceat(labels, starts).astype(np.int64)
    judged = (positives > 0) & (positives < sizes)
    return float((gained[judged] / _ideal(positives[judged], k)).mean())


def recall(hits: Bools, wanted: npt.NDArray[np.int64]) -> Floats:
    """Each user's share of wanted items among the first k: hits (users, k), wanted (users,) how many there are."""
    return hits.sum(axis=1) / wanted


def ndcg(hits: Bools, wanted: npt.NDArray[np.int64]) -> Floats:
    """Each user's NDCG@k: hits (users, k) in order of rank, wanted (users,) how many there are."""
    k = hits.shape[1]
    return (hits / np.log2(np.arange(k) + 2)).sum(axis=1) / _ideal(wanted, k)


def _ideal(wanted: npt.NDArray[np.int64], k: int) -> Floats:
    """The most that can be gained with so many wanted items."""
    gains = np.concatenate(([0], np.cumsum(1 / np.log2(np.arange(k) + 2))))
    return gains[np.minimum(wanted, k)]
