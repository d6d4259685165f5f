from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layerscope import nets
from layerscope.data import Dataset

PAPER = Path(__file__).parents[3] / "papers" / "medic"


def row(defence: str, acc: float, asr: float, relearn: float, attack: str = "badnet") -> dict[str, object]:
    fixed = {"net": "resnet", "seed": 0, "clean": 3000, "victim": "60000x8/256", "ra": 0.5, "seconds": 1.0}
    return {
        **fixed,
        "attack": attack,
        "defence": defence,
        "acc": acc,
        "held": acc,
        "asr": asr,
        "relearn": [relearn] * 5,
    }


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPER))
    import tables

    yield tables
    for name in ("tables", "reproduce", "defences", "bed"):
        sys.modules.pop(name, None)


def test_summary_and_front_by_hand(tables):
    rows = [
        row("before", 0.90, 1.00, 1.0), row("floor", 0.90, 0.01, 0.02), row("medic", 0.89, 0.03, 0.04),
        row("better", 0.89, 0.02, 0.04), row("relearns", 0.90, 0.02, 0.50),
        # an attack that did not take counts for nothing
        row("before", 0.90, 0.50, 1.0, "warp"), row("medic", 0.10, 1.00, 1.0, "warp"),
    ]  # fmt: skip
    found = tables.Rows(rows, "resnet", 3000, "60000x8/256", ("medic", "better", "relearns"))
    assert "| medic | 1 | 1.0 | 3.0 | 2.0 | 2.0 | 50.0 | 1 |" in tables.summary(found, tables.ATTACKS)
    assert tables.front(found, tables.ATTACKS).endswith("at once: better.")
    assert "| relearns | 1 | 1.0 | 1.0 | -1.0 | 46.0 |" in tables.paired(found, tables.ATTACKS)


def test_rows_cut_off_are_run_again(tables, tmp_path):
    whole = json.dumps(row("medic", 0.9, 0.1, 0.1))
    (tmp_path / "rows-0.jsonl").write_text(whole + "\n" + whole[:40])
    import reproduce

    assert len(reproduce.rows_in(tmp_path)) == 1
    reproduce.merge(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_would_be_run():
    script = [sys.executable, str(PAPER / "reproduce.py"), "--dry-run", "--stages", "main", "--seeds", "0"]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) == 11
    assert said.startswith("main-resnet-badnet-0-3000: 14 rows")


def test_tables_go_between_their_marks_and_nowhere_else(tables):
    card = "# A\n<!-- one: written by tables.py -->\nold\n<!-- end of one -->\nB\n"
    new = "# A\n<!-- one: written by tables.py -->\n\n| 1 |\n\n<!-- end of one -->\nB\n"
    assert tables.written(card, {"one": "| 1 |"}) == new
    assert tables.written(new, {"one": "| 1 |"}) == new
    with pytest.raises(ValueError, match="no place for 'two'"):
        tables.written(card, {"two": ""})


def test_the_same_start_is_the_poisoned_networks_own(tables):
    import defences

    clean = Dataset("noise", torch.rand(128, 1, 8, 8), torch.arange(128) % 10, 10)
    spec, norm = defences.NETS["resnet"]
    model = nets.build(spec, norm, in_shape=clean.in_shape, classes=10, seed=5).eval()
    _, report = defences.from_the_teachers_start(model, clean, 5 + defences.APART, epochs=1)
    assert report.steps < 100
    with pytest.raises(RuntimeError, match="does not"):
        defences.from_the_teachers_start(model, clean, 5, epochs=1)


def test_the_card_shows_the_committed_rows(tables):
    rows, former = (list(tables.rows_in(folder).values()) for folder in (tables.RESULTS, tables.RESULTS / "former"))
    card = tables.CARD.read_text()
    assert tables.written(card, tables.parts(rows, former, 3000, "60000x8/256")) == card
