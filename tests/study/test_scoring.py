import math

import pytest

from layerscope.errors import StudyError
from layerscope.study import ceiling, entries, evaluate, leave_one_out, parse, reputation, scorecard
from layerscope.study.scoring import number
from layerscope.study.summary_card import parts

NORMS = ("batch", "layer", "instance", "none", "group:size=4")


def row(norm, net="a", lr=0.1, seed=0, accuracy=0.5, fails=False, **more):
    return {
        "id": f"{norm}-{net}-{lr}-{seed}",
        "state": "done",
        "norm": norm,
        "net": net,
        "lr": lr,
        "seed": seed,
        "outcome.mean_accuracy": accuracy,
        "outcome.fails": fails,
        **more,
    }


def grid(accuracy, nets=("a", "b", "c"), seeds=(0, 1), **more):
    return [
        row(norm, net, seed=seed, accuracy=accuracy(norm, net, seed), **{k: f(norm, net) for k, f in more.items()})
        for net in nets
        for seed in seeds
        for norm in NORMS
    ]


def steady(norm, net, seed):
    return 0.3 + 0.1 * NORMS.index(norm) + 0.001 * seed


def test_a_perfect_score_a_reversed_one_and_a_constant():
    rows = entries(grid(steady), ["net", "lr"])
    perfect = evaluate("p", rows, [e.outcome for e in rows])
    assert perfect.spearman.mean == perfect.spearman.low == perfect.tau.mean == pytest.approx(1.0)
    assert perfect.regret.mean == 0.0
    reverse = evaluate("r", rows, [-e.outcome for e in rows])
    assert reverse.spearman.mean == pytest.approx(-1.0)
    assert reverse.regret.mean == pytest.approx(0.4)
    constant = evaluate("c", rows, [1.0] * len(rows))
    assert constant.spearman.mean == 0.0
    assert constant.regret.mean == pytest.approx(0.2)


def test_it_is_the_order_inside_a_stratum_that_counts():
    """A score that knows only which stratum is easy is worth nothing, whatever its pooled correlation."""
    rows = entries(grid(lambda norm, net, seed: steady(norm, net, seed) / 10 + "abc".index(net) / 3), ["net"])
    knows_the_net = evaluate("n", rows, [float("abc".index(e.row["net"])) for e in rows])
    assert knows_the_net.spearman.mean == 0.0


def test_strata_that_mostly_fail_are_left_out_of_ranking_but_not_of_auroc():
    table = grid(steady, nets=("a",)) + [
        {**r, "outcome.fails": r["norm"] != "batch"}
        for r in grid(lambda n, t, s: 0.1 + steady(n, t, s) / 100, nets=("b",))
    ]
    rows = entries(table, ["net"])
    scored = evaluate("s", rows, [0.0 if e.fails else e.outcome + 1 for e in rows])
    assert scored.spearman.groups == 1
    assert scored.auroc.groups == 2
    assert scored.auroc.mean == 1.0


def test_small_strata_are_not_ranked():
    rows = entries(grid(steady)[:3], ["net"])
    assert evaluate("s", rows, [1.0, 2.0, 3.0]).spearman is None


def test_missing_scores_count_as_the_median_and_nan_as_the_worst():
    rows = entries(grid(steady, nets=("a",), seeds=(0,)), ["net"])
    scores = [0.0, 1.0, None, 3.0, 4.0]
    scored = evaluate("s", rows, scores)
    assert scored.missing == 1
    assert scored.spearman.mean == pytest.approx(0.975, abs=0.01)
    worst = evaluate("s", rows, [math.nan, 1.0, 2.0, 3.0, 4.0])
    assert worst.spearman.mean == pytest.approx(1.0)


def test_the_ceiling_is_the_agreement_of_two_seeds():
    agree = ceiling(entries(grid(steady), ["net"]))
    assert agree.mean == pytest.approx(1.0)
    flips = ceiling(entries(grid(lambda n, t, s: steady(n, t, s) * (1 if s else -1) + 1), ["net"]))
    assert flips.mean == pytest.approx(-1.0)
    assert ceiling(entries(grid(steady, seeds=(0,)), ["net"])) is None


def test_reputation_is_the_mean_rank_elsewhere():
    rows = entries(grid(steady), ["net"])
    for entry, score in zip(rows, reputation(rows), strict=True):
        assert score == pytest.approx(NORMS.index(entry.norm) / 4)
    turned = entries(grid(lambda n, t, s: steady(n, t, s) if t != "a" else -steady(n, t, s)), ["net"])
    own = {(e.norm, e.row["net"]): s for e, s in zip(turned, reputation(turned), strict=True)}
    # what happened in net a itself plays no part in its scores
    assert own["batch", "a"] == 0.0
    assert own["batch", "b"] == pytest.approx(0.5)


def test_reputation_can_be_kept_from_whole_families_and_from_new_norms():
    table = grid(steady, nets=("a",)) + [{**r, "lr": 0.2, "id": r["id"] + "x"} for r in grid(steady, nets=("a",))]
    rows = entries(table, ["net", "lr"])
    assert None not in reputation(rows)
    assert set(reputation(rows, apart="net")) == {None}
    alone = entries([*grid(steady), row("new", accuracy=0.9)], ["net"])
    assert reputation(alone)[-1] is None


def test_a_reputation_can_come_from_other_trainings_alone():
    rows = entries(grid(steady), ["net"])
    developed = [e for e in rows if e.row["net"] == "a" and e.norm != "batch"]
    known = dict(zip(((e.norm, e.row["net"]) for e in rows), reputation(rows, among=developed), strict=True))
    assert known["batch", "c"] is None
    assert known["layer", "c"] == 0.0
    assert known["group:size=4", "c"] == 1.0


def test_leave_one_out_never_shows_the_fit_what_it_will_score():
    rows = entries(grid(steady), ["net"])
    seen = []

    def fit(outside):
        names = {e.norm for e in outside}
        seen.append(names)
        return lambda entry: float(entry.norm in names)

    scores = leave_one_out(rows, "norm", fit)
    assert set(scores) == {0.0}
    assert all(len(names) == len(NORMS) - 1 for names in seen)
    assert leave_one_out(rows, "lr", fit) == [None] * len(rows)


def test_failed_trials_do_not_count_and_columns_must_be_there():
    table = grid(steady)
    table[0]["state"] = "failed"
    assert len(entries(table, ["net"])) == len(table) - 1
    with pytest.raises(StudyError, match="did you mean 'net'"):
        entries(table, ["nett"])


@pytest.mark.parametrize(("text", "value"), [("inf", math.inf), (True, 1.0), (2, 2.0), ("x", None), (None, None)])
def test_numbers(text, value):
    assert number(text) == value


def study_of(table, **more):
    return parse(
        {
            "study": {"trial": "study.dummies:anything"},
            "grid": {"norm": list(NORMS), "net": ["a", "b", "c"], "seed": 2},
            "fixed": {"lr": 0.1},
            **more,
        }
    )


def test_the_card_shows_scores_beside_baselines_and_both_parts():
    table = grid(
        steady,
        verdict=lambda norm, net: "fails" if norm == "batch" else "healthy",
        held_out=lambda norm, net: net == "c",
        held_out_by=lambda norm, net: "net" if net == "c" else "",
        **{
            "init.cosine_pooled": lambda norm, net: 1 - NORMS.index(norm) / 5,
            "init.grad_ratio": lambda norm, net: "nan",
            "init.ms_last": lambda norm, net: "inf",
        },
    )
    for r in table:
        r["outcome.fails"] = r["norm"] == "batch"
    card = scorecard(study_of(table), table, draws=200)
    assert card["pooled similarity"].spearman.mean == pytest.approx(1.0)
    assert card["verdict"].auroc.mean == 1.0
    assert card["constant"].auroc.mean == 0.5
    assert card["reputation elsewhere"].spearman.mean == pytest.approx(1.0)
    assert card["batch noise"].missing == len(table)
    assert (card.rows, card.strata, card.failing, card.part) == (30, 3, 6, "all")
    text = str(card)
    assert "reputation elsewhere" in text
    assert "batch noise 30" in text
    assert max(map(len, text.splitlines())) <= 80
    what = study_of(table, split={"net": "c"})
    assert parts(what) == ("all", "development", "held-out", "held-out:net")
    held = scorecard(what, table, part="held-out", draws=50)
    assert (held.rows, held.strata, held.part) == (10, 1, "held-out")
    # a held-out stratum may know what the norm did in the others
    assert held["reputation elsewhere"].missing == 0
    assert held["reputation, development"].spearman.mean == pytest.approx(1.0)
    assert scorecard(what, table, part="held-out:net", draws=50).rows == 10
    assert scorecard(what, table, part="development", draws=50).rows == 20
    with pytest.raises(StudyError, match="did you mean 'held-out:net'"):
        scorecard(what, table, part="held-out:nets")
    with pytest.raises(StudyError, match="no finished training"):
        scorecard(study_of(table), [])
