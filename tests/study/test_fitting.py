"""The learned score: that the fit finds what is there, and that a live network and a row give the same terms."""

import math
import random

import numpy as np
import pytest

import layerscope
from layerscope import training, verdict
from layerscope.errors import StudyError
from layerscope.study.fitting import fit
from layerscope.study.scoring import entries
from layerscope.study.trials import probe_and_train
from layerscope.verdict.features import features
from layerscope.verdict.foresight import TERMS, Foresight


def table(outcome, count=40, seed=0):
    draw = random.Random(seed)
    rows = []
    for setup in range(count):
        for norm in range(8):
            row = {
                "id": f"{setup}-{norm}", "state": "done", "norm": str(norm), "seed": 0, "setup": setup,
                "lr": 10 ** draw.uniform(-2, 0), "init.ms_last": 10 ** draw.uniform(-3, 3),
                "init.cosine": 1 - 10 ** draw.uniform(-3, 0), "init.batch_noise": 10 ** draw.uniform(-1, 1),
            }  # fmt: skip
            row["outcome.mean_accuracy"] = outcome(row)
            row["outcome.fails"] = row["outcome.mean_accuracy"] < 0.15
            rows.append(row)
    return entries(rows, ["setup"])


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def law(row):
    return 0.1 + 0.9 * sigmoid(
        0.5 - 1.5 * abs(math.log10(row["init.ms_last"])) + 0.8 * math.log10(1 - row["init.cosine"])
    )


def test_a_logistic_law_is_found_again():
    rows = table(law)
    found = fit(rows, ["forward scale", "dissimilarity", "batch noise"], ridge=1e-6)
    slopes = dict(zip(found.terms, np.array(found.weights) / np.array(found.scales), strict=True))
    assert slopes["forward scale"] == pytest.approx(-1.5, abs=0.02)
    assert slopes["dissimilarity"] == pytest.approx(0.8, abs=0.02)
    assert slopes["batch noise"] == pytest.approx(0.0, abs=0.02)
    for entry in rows[:20]:
        assert found.expected(entry.row) == pytest.approx((entry.outcome - 0.1) / 0.9, abs=0.01)


def test_places_see_only_differences_inside_a_set_up():
    hard = {s: s / 40 for s in range(40)}
    rows = table(lambda row: 0.5 * law(row) + 0.4 * hard[row["setup"]])
    found = fit(rows, ["forward scale", "dissimilarity"], target="place", ridge=1e-6)
    slopes = np.array(found.weights) / np.array(found.scales)
    assert slopes[0] / slopes[1] == pytest.approx(-1.5 / 0.8, rel=0.1)


def test_the_risk_of_failing_is_turned_round_so_that_higher_is_better():
    rows = table(lambda row: 0.1 if abs(math.log10(row["init.ms_last"])) > 1.5 else 0.8)
    found = fit(rows, ["forward scale"], target="risk", ridge=0.1)
    assert found.weights[0] < 0
    assert found.expected({"init.ms_last": 1.0}) > 0.9
    assert found.expected({"init.ms_last": 1e3}) < 0.1


def test_what_is_missing_counts_as_average_and_what_is_broken_as_extreme():
    found = Foresight(("forward scale", "batch noise"), (-1.0, -1.0), (1.0, 0.0), (1.0, 1.0), 0.0)
    assert found.expected({}) == 0.5
    assert found.parts({"init.ms_last": "inf"})["forward scale"] == -5.0
    assert found.parts({"init.ms_last": "nan"})["forward scale"] == -5.0
    assert Foresight.from_plain(found.to_plain()) == found
    for term in TERMS.values():
        for value in ("nan", "inf", "-inf", 0.0, None):
            names = ("probe_loss", "cosine", "cosine_pooled", "cosine_token", "ms_last", "sharpness", "gradient")
            row = {f"init.{n}": value for n in names} | {f"micro.{n}": value for n in ("drop", "worst", "loss")}
            made = term(row | {"lr": 0.1})
            assert made is None or math.isfinite(made)


def test_no_rows():
    with pytest.raises(StudyError, match="no finished training"):
        fit([], ["forward scale"])
    with pytest.raises(StudyError, match="did you mean 'place'"):
        fit(table(law, 2), ["forward scale"], target="plac")


def test_a_live_network_and_its_row_say_the_same():
    setting = {"net": "plain:depth=4,width=8", "norm": "batch"}
    row = probe_and_train(**setting, batch_size=16, lr=0.05, steps=2)
    flat = {f"{part}.{k}": v for part in ("init", "micro") for k, v in row[part].items()} | {
        "lr": 0.05,
        "batch_size": 16,
    }
    net = layerscope.net(setting["net"], norm="batch", in_shape=(1, 8, 8), classes=10, seed=0)
    x, y = layerscope.batch("digits", 32, seed=0)
    profile = layerscope.profile(net, (x, y), batch_size=16, seed=0)
    micro = verdict.real_steps(net, "digits", lr=0.05, steps=20, batch_size=16, seed=1_000_003, weight_decay=1e-4)
    live = features(
        profile, lr=0.05, classes=10, curvature=training.curvature(net, (x[:16], y[:16]), seed=0), micro=micro
    )
    for name, term in TERMS.items():
        if name != "depth":
            seen = term(live)
            assert seen == (None if seen is None else pytest.approx(term(flat), rel=1e-5)), name
