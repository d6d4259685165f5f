import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.study.statistics import auroc, bootstrap_mean, kendall_tau_b, ranks, spearman

scipy_stats = pytest.importorskip("scipy.stats")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12)


@settings(max_examples=80, deadline=None)
@given(PAIRS)
def test_correlations_with_ties_against_scipy(pairs):
    x, y = zip(*pairs, strict=True)
    np.testing.assert_allclose(ranks(x), scipy_stats.rankdata(x))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert spearman(x, y) is None
        assert kendall_tau_b(x, y) is None
    else:
        assert spearman(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
        assert kendall_tau_b(x, y) == pytest.approx(scipy_stats.kendalltau(x, y).statistic)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=15))
def test_auroc_against_sklearn_and_by_counting(pairs):
    scores, labels = zip(*pairs, strict=True)
    if len(set(labels)) < 2:
        assert auroc(scores, labels) is None
        return
    good = [s for s, positive in pairs if positive]
    bad = [s for s, positive in pairs if not positive]
    counted = sum((a > b) + 0.5 * (a == b) for a in good for b in bad) / (len(good) * len(bad))
    assert auroc(scores, labels) == pytest.approx(counted)
    assert auroc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))


def test_infinite_values_rank_at_the_ends():
    assert spearman([-math.inf, 0.0, math.inf], [1, 2, 3]) == pytest.approx(1.0)
    assert auroc([math.inf, 1.0, -math.inf], [True, False, False]) == 1.0


def test_one_value_has_no_correlation():
    assert spearman([1.0], [2.0]) is None


def test_bootstrap_of_groups_has_the_known_spread():
    generator = np.random.default_rng(0)
    groups = generator.standard_normal((100, 1)).tolist()
    interval = bootstrap_mean(groups, draws=4000)
    assert interval.mean == pytest.approx(np.mean(groups))
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 / 10, rel=0.2)
    assert interval.groups == 100


def test_bootstrap_counts_the_spread_inside_groups_too():
    one_group = bootstrap_mean([[0.0, 1.0] * 8])
    assert one_group.low < 0.5 < one_group.high
    assert bootstrap_mean([[0.5]]).low == bootstrap_mean([[0.5]]).high == 0.5
    assert bootstrap_mean([[], []]) is None
    assert bootstrap_mean([[1.0], []]).groups == 1
    assert bootstrap_mean([[0.0], [1.0]], seed=3) == bootstrap_mean([[0.0], [1.0]], seed=3)
