"""The trial that studies of norms run, on the bundled digits."""

import math

import pytest

from layerscope.errors import DataError, LayerscopeError, SpecError
from layerscope.study import execute, flatten, inline, parse, run
from layerscope.study.runner import check
from layerscope.study.store import Store
from layerscope.study.trial import Trial
from layerscope.study.trials import curve, net_of, outcome
from layerscope.training.history import History
from layerscope.verdict.features import init_features, micro_features
from layerscope.verdict.types import MicroTrain

SMALL = {"net": "plain:depth=4,width=8", "steps": 25, "batch_size": 16}


def document(**grid):
    return {"grid": grid, "fixed": {k: v for k, v in SMALL.items() if k not in grid}}


def test_a_trial_says_what_the_probe_saw_and_what_training_did():
    done = execute(Trial.of("layerscope.study.trials:probe_and_train", {"norm": "batch", **SMALL}))
    assert done.state == "done", done.trace
    result = done.result
    assert result["verdict"] in ("healthy", "slow", "very slow", "unstable", "fails", "unknown")
    assert set(result["axes"]) == {"F", "I", "B", "N"}
    assert -1 <= result["init"]["cosine_pooled"] <= 1
    assert result["init"]["batch_noise"] > 0
    assert 0.05 < result["outcome"]["mean_accuracy"] < 1
    assert result["outcome"]["diverged"] is False
    assert len(result["curve"]["accuracy"]) == len(result["curve"]["loss"]) == 13  # stretches of two steps
    assert 0 <= result["outcome"]["test_accuracy"] <= 1
    assert len(result["series"]["ms"]) == len(result["series"]["grad"]) == 4
    assert result["init"]["sharpness"] >= abs(result["init"]["along_gradient"]) > 0
    assert result["parameters"] > 1000
    assert len(result["micro"]["losses"]) == 20
    # the real steps see the data in another order than training does
    assert result["micro"]["losses"][0] != pytest.approx(result["curve"]["loss"][0], abs=1e-3)
    assert "torch" in result["hardware"]


def test_the_same_configuration_gives_the_same_numbers_and_the_seed_matters(tmp_path):
    study = parse(document(norm=["batch", "none"], lr=[0.05, 0.2], seed=2))
    run(study, inline, store=tmp_path / "a.sqlite")
    run(study, inline, store=tmp_path / "b.sqlite")
    tables = []
    for name in "ab":
        with Store(tmp_path / f"{name}.sqlite") as store:
            tables.append([{k: v for k, v in r.items() if k != "seconds"} for r in flatten(store.rows(), study)])
    assert tables[0] == tables[1]
    by_key = {(r["norm"], r["lr"], r["seed"]): r for r in tables[0]}
    assert by_key["none", 0.05, 0]["curve.loss"] != by_key["none", 0.05, 1]["curve.loss"]
    # the probe comes before training, so the learning rate plays no part in it
    for feature in ("init.cosine_pooled", "init.grad_ratio", "verdict"):
        assert by_key["batch", 0.05, 0][feature] == by_key["batch", 0.2, 0][feature]
    assert by_key["batch", 0.05, 0]["curve.loss"] != by_key["batch", 0.2, 0]["curve.loss"]


@pytest.mark.parametrize(
    ("grid", "error", "words"),
    [
        ({"norm": ["bacth"]}, SpecError, "batch"),
        ({"norm": ["batch"], "net": ["plan"]}, LayerscopeError, "plain"),
        ({"norm": ["batch"], "data": ["digitz"]}, DataError, "digits"),
        ({"norm": ["batch"], "init": ["he-norml"]}, SpecError, "did you mean 'he-normal'"),
        ({"norm": ["batch"], "net": ["resnet20"], "depth": [3]}, SpecError, "depth"),
        ({"norm": ["batch"], "batch_size": [0]}, LayerscopeError, "batch_size must be a whole number"),
    ],
)
def test_wrong_names_are_found_before_the_first_trial(grid, error, words):
    with pytest.raises(error, match=words):
        check(parse(document(**grid)))


def history(losses, accuracies, diverged_at=None, planned=None):
    return History(
        losses=tuple(losses),
        lrs=(0.1,) * len(losses),
        metrics={"accuracy": tuple(accuracies)},
        evaluations=(),
        planned=planned or len(losses),
        diverged=diverged_at is not None,
        diverged_at=diverged_at,
        seconds=1.0,
        seed=0,
        batch_size=8,
    )


def test_what_counts_as_failing():
    assert outcome(history([2.3] * 10, [0.1] * 10), 10)["fails"] is True
    assert outcome(history([2.3] * 10, [0.16] * 10), 10)["fails"] is False
    assert outcome(history([2.0, math.inf], [0.9, 0.9], diverged_at=1, planned=10), 10)["fails"] is True
    assert outcome(history([2.0] * 4, [0.5] * 4), 2)["fails"] is True


def test_the_first_steps_as_features():
    features = micro_features(MicroTrain(0.1, 20, 8, (4.0, *([1.0] * 19)), False, None))
    assert features["loss"] == 1.0
    assert features["drop"] == 0.75
    assert features["worst"] == 4.0
    assert features["diverged"] == 0.0
    lost = micro_features(MicroTrain(0.1, 20, 8, (2.0, math.inf), True, 1))
    assert (lost["diverged"], lost["worst"]) == (1.0, math.inf)


def test_the_curve_is_means_over_equal_stretches_and_ends_where_training_did():
    assert curve(history([4.0, 2.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]), parts=2) == {
        "loss": [3.0, 1.0],
        "accuracy": [0.5, 1.0],
    }
    assert curve(history([4.0, 2.0, 1.0], [0.0] * 3, diverged_at=2, planned=8), parts=4)["loss"] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("net", "depth", "spec"),
    [
        ("resnet:width=8", 8, "resnet:width=8,blocks=1"),
        ("resnet:width=8", 26, "resnet:width=8,blocks=4"),
        ("convnext", 14, "convnext:blocks=2"),
        ("vit", 26, "vit:depth=6"),
        ("mixer", 2, "mixer:depth=1"),
        ("plain:width=8", 14, "plain:width=8,depth=14"),
    ],
)
def test_depth_is_counted_in_layers_whatever_the_network_is_built_of(net, depth, spec):
    assert net_of(net, depth) == spec


def test_training_alone():
    done = execute(Trial.of("layerscope.study.trials:train", {"norm": "batch", **SMALL}))
    assert done.state == "done", done.trace
    assert 0.05 < done.result["outcome"]["mean_accuracy"] < 1
    assert done.result["seconds_training"] > 0


def test_features_of_an_empty_profile_are_missing_not_made_up():
    from layerscope.probe.records import Profile

    empty = Profile("x", "none", (), "light", 8, 1, (1, 8, 8), 0, None)
    features = init_features(empty)
    assert features.pop("nonfinite") == 0.0
    assert set(features.values()) == {None}
