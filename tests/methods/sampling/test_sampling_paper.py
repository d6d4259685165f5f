"""The card of the paper: its code runs, and its results are what the study wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAPER = Path(__file__).parents[3] / "papers" / "neural-sampling-machine"


def test_the_code_of_the_card_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (PAPER / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})


ROWS = [
    json.loads(line) for file in sorted((PAPER / "results").glob("*.jsonl")) for line in file.read_text().splitlines()
]


def test_random_gains_do_not_change_a_sampling_network_in_any_trial():
    kinds = {row["kind"] for row in ROWS if row["kind"].startswith(("nsm", "sign, erf"))} - {
        "nsm, ordinary first layer"
    }
    rows = [row for row in ROWS if row["kind"] in kinds and "accuracy_random_gain" in row]
    assert len(rows) > 20
    for row in rows:
        assert abs(row["accuracy_random_gain"] - row["accuracy"]) < 0.004  # rounding moves a threshold now and then


def test_the_tables_are_those_of_the_committed_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPER))
    from tables import tables

    assert tables(ROWS) == (PAPER / "results" / "tables.md").read_text()
