import tomllib

import pytest

from layerscope.errors import StudyError
from layerscope.study import load, parse

TEXT = """
[study]
name = "demo"
trial = "study.dummies:anything"

[grid]
norm = ["batch", "group:size=8", "none"]
net = ["a", "b"]
batch_size = [4, 32]
seed = 3

[fixed]
steps = 10
in_shape = [1, 8, 8]

[[exclude]]
norm = "batch"
batch_size = 4

[[exclude]]
net = "b"
norm = ["none", "group:size=8"]
seed = [1, 2]
"""


def study(text=TEXT):
    return parse(tomllib.loads(text))


def test_every_combination_less_the_excluded_ones():
    s = study()
    combinations = [t.arguments for t in s.trials]
    assert len(combinations) == 36 - 6 - 8
    assert not any(c["norm"] == "batch" and c["batch_size"] == 4 for c in combinations)
    assert all(c["steps"] == 10 and c["in_shape"] == (1, 8, 8) for c in combinations)
    assert {c["seed"] for c in combinations} == {0, 1, 2}
    assert len({t.id for t in s.trials}) == len(s.trials)
    assert s.distinct()["norm"] == ("batch", "group:size=8", "none")


def test_a_sub_sample_is_balanced_and_grows_by_adding():
    small = study(TEXT + '[design]\ntrials = 9\nstrata = ["norm"]\n')
    large = study(TEXT + '[design]\ntrials = 15\nstrata = ["norm"]\n')
    assert len(small.trials) == 9
    for norm in ("batch", "group:size=8", "none"):
        assert sum(t.arguments["norm"] == norm for t in small.trials) == 3
    assert {t.id for t in small.trials} < {t.id for t in large.trials}
    other = study(TEXT + '[design]\ntrials = 9\nstrata = ["norm"]\nseed = 1\n')
    assert {t.id for t in other.trials} != {t.id for t in small.trials}
    assert len(study(TEXT + "[design]\ntrials = 1000\n").trials) == 22


def test_what_is_held_out_is_written_in_the_file():
    s = study(TEXT + '[split]\nnorm = ["none"]\nnet = "b"\n')
    held = [t.arguments for t in s.trials if s.is_held_out(t)]
    assert held
    assert all(c["norm"] == "none" or c["net"] == "b" for c in held)
    assert not any(study().is_held_out(t) for t in study().trials)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[grid]", "[gird]"), "unknown section 'gird': did you mean 'grid'"),
        (('name = "demo"', 'nmae = "demo"'), r"unknown key 'nmae' in \[study\]: did you mean 'name'"),
        (("seed = 3", "seed = []"), "grid.seed is empty"),
        (("seed = 3", "seed = 1.5"), "grid.seed must be a list"),
        (("batch_size = [4, 32]", "batch_size = [4, 4]"), "holds 4 twice"),
        (("steps = 10", "norm = 10"), r"stands in \[grid\] and in \[fixed\]"),
        (("steps = 10", "steps = nan"), "not a finite number"),
        (("steps = 10", "steps = 2020-01-01"), "date is not text"),
        (('net = "b"\n', 'nett = "b"\n'), r"unknown key 'nett' in \[exclude\]: did you mean 'net'"),
        (("dummies:anything", "dummies:square"), "takes no argument 'batch_size'"),
        (("dummies:anything", "dummies:nothing"), "has no function 'nothing'"),
        (("study.dummies:anything", "nowhere:f"), "cannot be imported"),
    ],
)
def test_bad_files(change, words):
    with pytest.raises(StudyError, match=words):
        study(TEXT.replace(*change, 1))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("[design]\ntrials = 0\n", "design.trials must be a whole number of at least 1"),
        ("[design]\nsize = 3\n", r"unknown key 'size' in \[design\]"),
        ('[design]\nstrata = ["nrom"]\n', "did you mean 'norm'"),
        ('[design]\nstrata = "norm"\n', "must be a list of names"),
        ('[split]\ndata = ["x"]\n', r"unknown key 'data' in \[split\]"),
    ],
)
def test_bad_designs(extra, words):
    with pytest.raises(StudyError, match=words):
        study(TEXT + extra)


def test_an_empty_grid_and_a_grid_without_trials():
    head = '[study]\ntrial = "study.dummies:anything"\n'
    with pytest.raises(StudyError, match="the grid is empty"):
        study(head)
    with pytest.raises(StudyError, match="every combination of the grid is excluded"):
        study(head + "[grid]\nx = [1, 2]\n[[exclude]]\nx = [1, 2]\n")
    with pytest.raises(StudyError, match="needs 'x'"):
        study('[study]\ntrial = "study.dummies:square"\n[grid]\nseed = 2\n')


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(StudyError, match="no study file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[study\n")
    with pytest.raises(StudyError, match=r"bad.toml is not TOML: .*line 1"):
        load(tmp_path / "bad.toml")
    (tmp_path / "unknown.toml").write_text("[gird]\n")
    with pytest.raises(StudyError, match=r"unknown.toml: unknown section 'gird'"):
        load(tmp_path / "unknown.toml")


def test_the_default_trial_function_checks_its_arguments(tmp_path):
    (tmp_path / "s.toml").write_text('[grid]\nnorm = ["batch"]\n[fixed]\nnet = "resnet20"\nbatchsize = 3\n')
    with pytest.raises(StudyError, match="did you mean 'batch_size'"):
        load(tmp_path / "s.toml")
