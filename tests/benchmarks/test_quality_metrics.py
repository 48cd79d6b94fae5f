"""Rankings are judged as their definitions say."""

import numpy as np
import pytest

from benchmarks.quality.metrics import auc, grouped_ndcg, ndcg, recall


def test_auc_is_the_share_of_pairs_in_the_right_order_and_ties_count_half() -> None:
    labels = np.array([1, 0, 1, 0, 0], dtype=np.float32)
    scores = np.array([0.9, 0.1, 0.4, 0.4, 0.8])
    pairs = [(p, n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs]))


def test_ndcg_inside_groups_is_the_mean_of_each_groups_own() -> None:
    generator = np.random.default_rng(0)
    groups = generator.integers(40, size=600)
    labels = generator.integers(2, size=600).astype(np.float32)
    scores = generator.random(600)
    expected = []
    for group in range(40):
        mine = groups == group
        ranked = labels[mine][np.argsort(-scores[mine])]
        discount = 1 / np.log2(np.arange(2, 12))
        ideal = discount[: min(10, int(ranked.sum()))].sum()
        expected.append((ranked[:10] * discount[: len(ranked)]).sum() / ideal)
    assert grouped_ndcg(labels, scores, groups) == pytest.approx(np.mean(expected))


def test_groups_without_a_choice_are_left_out_and_constant_scores_earn_chance() -> None:
    labels = np.array([1, 1, 0, 1, 0], dtype=np.float32)
    groups = np.array([0, 0, 1, 2, 2])
    assert grouped_ndcg(labels, np.array([0.0, 0, 0, 1, 0]), groups) == 1
    many = np.tile([1.0, 0.0], 5000).astype(np.float32)
    constant = grouped_ndcg(many, np.zeros(10_000), np.arange(10_000) // 2)
    assert constant == pytest.approx((1 + 1 / np.log2(3)) / 2, abs=0.01)


def test_recall_and_ndcg_of_users_who_want_more_than_fits() -> None:
    hits = np.array([[True, False, True], [False, False, False], [True, True, True]])
    wanted = np.array([2, 1, 5])
    assert recall(hits, wanted).tolist() == [1, 0, 0.6]
    assert ndcg(hits, wanted).tolist() == pytest.approx([1.5 / (1 + 1 / np.log2(3)), 0, 1])
