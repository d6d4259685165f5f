"""The trial that studies of norms run, on the bundled digits."""

import math

import pytest

from layerscope.errors import DataError, LayerscopeError, SpecError
from layerscope.study import execute, flatten, inline, parse, run
from layerscope.study.runner import check
from layerscope.study.store import Store
from layerscope.study.trial import Trial
from layerscope.study.trials import init_features, micro_features, outcome
from layerscope.training.history import History

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
    assert len(result["losses"]) == 25
    assert result["parameters"] > 1000
    assert result["micro"]["loss"] == pytest.approx(sum(result["losses"][15:20]) / 5, abs=1e-4)


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
    assert by_key["none", 0.05, 0]["losses"] != by_key["none", 0.05, 1]["losses"]
    # the probe comes before training, so the learning rate plays no part in it
    for feature in ("init.cosine_pooled", "init.grad_ratio", "verdict"):
        assert by_key["batch", 0.05, 0][feature] == by_key["batch", 0.2, 0][feature]
    assert by_key["batch", 0.05, 0]["losses"] != by_key["batch", 0.2, 0]["losses"]


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
    features = micro_features(history([3.0, *([1.0] * 30)], [0.2] * 31))
    assert features == {"loss": 1.0, "drop": 2.0, "worst": 3.0, "accuracy": pytest.approx(0.2), "diverged": 0.0}
    assert micro_features(history([2.0, math.inf], [0.1, 0.1], diverged_at=1))["diverged"] == 1.0
    assert micro_features(history([2.0] * 40, [0.1] * 40, diverged_at=30))["diverged"] == 0.0


def test_features_of_an_empty_profile_are_missing_not_made_up():
    from layerscope.probe.records import Profile

    empty = Profile("x", "none", (), "light", 8, 1, (1, 8, 8), 0, None)
    features = init_features(empty)
    assert features.pop("nonfinite") == 0.0
    assert set(features.values()) == {None}
