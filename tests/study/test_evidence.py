"""The numbers that the package carries are those that the committed rows give."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import pytest

from layerscope import study
from layerscope.study import rowfile
from layerscope.study.fitting import fit
from layerscope.study.hit_rates import cleanest, hit_rates
from layerscope.study.rejudge import rejudged
from layerscope.study.scoring import entries
from layerscope.study.summary_card import members, strata_columns
from layerscope.verdict import evidence

PAPER = Path(__file__).resolve().parents[2] / "papers" / "beyond-batchnorm"
ROWS = PAPER / "results" / "trials.jsonl.gz"


@pytest.fixture(scope="module")
def trainings():
    what = study.load(PAPER / "study.toml")
    table = rejudged(study.flatten(rowfile.read(ROWS), what))
    return entries(table, strata_columns(what))


def test_the_packaged_hit_rates_are_those_of_the_committed_rows(trainings):
    what = study.load(PAPER / "study.toml")
    held, clean = (members(what, trainings, part) for part in ("held-out", "fresh"))
    packaged = evidence.load()
    assert packaged.summary["trainings"] == len(trainings) >= 1000
    assert packaged.summary["held_out"] == len(held)
    assert packaged.summary["rows_sha256"] == hashlib.sha256(ROWS.read_bytes()).hexdigest()
    assert packaged.summary["fresh"] == len(clean)
    for basis, rates in cleanest(hit_rates(clean, trainings), hit_rates(held, trainings)).items():
        assert packaged.rates[basis].keys() == rates.keys()
        for label, rate in rates.items():
            mine, theirs = asdict(packaged.rates[basis][label]), asdict(rate)
            assert mine.pop("source") == theirs.pop("source")
            assert mine == pytest.approx(theirs, abs=1e-3)


def test_the_list_of_the_clean_test_was_written_before_its_trials_ran(trainings):
    what = study.load(PAPER / "study.toml")
    columns = strata_columns(what)
    clean = {t.id: tuple(str(t.arguments[c]) for c in columns) for t in what.listed("fresh")}
    others = {e.stratum for e in trainings if e.row["id"] not in clean}
    # nothing of its set-ups, at any seed, stands among the other rows
    assert not others & set(clean.values())
    assert all(what.is_held_out(t) and t.arguments["seed"] == 0 for t in what.listed("fresh"))
    # what ran is the beginning of the list
    have = {e.row["id"] for e in trainings}
    ran = [t.id in have for t in what.listed("fresh")]
    assert ran == sorted(ran, reverse=True)


def test_the_packaged_scores_are_fits_to_the_development_part_alone(trainings):
    dev = [e for e in trainings if not e.row["held_out"]]
    assert not {e.norm for e in dev} & {"frn", "evonorm-s0:size=4", "sws", "group:size=4", "switchable", "proxy:size=4"}
    assert {e.row["data"] for e in dev} == {"digits:size=16"}
    settings = {
        "probe init": ("level", 3.0),
        "learned init": ("level", 10.0),
        "risk init": ("risk", 10.0),
        "learned micro": ("level", 3.0),
        "risk micro": ("risk", 10.0),
    }
    assert evidence.load().scores.keys() == settings.keys()
    for name, formula in evidence.load().scores.items():
        target, ridge = settings[name]
        again = fit(dev, formula.terms, target=target, ridge=ridge)
        for entry in dev[::20]:
            assert again.expected(entry.row) == pytest.approx(formula.expected(entry.row), abs=2e-3)


def test_no_trial_of_the_committed_rows_raised():
    assert {row.state for row in rowfile.read(ROWS)} == {"done"}
