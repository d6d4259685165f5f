"""``layerscope nets`` and ``layerscope data``: everything is listed, in 80 columns, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from layerscope import data, nets
from layerscope.cli import main

ROOMS = {"nets": nets, "data": data}


@pytest.mark.parametrize("kind", ROOMS)
def test_the_list_is_complete_and_fits_80_columns(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([kind])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(ROOMS[kind].names())


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, room in ROOMS.items() for name in room.names()])
def test_one_entry_says_everything(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([kind, name])
    text = capsys.readouterr().out
    info = ROOMS[kind].info(name)
    assert max(map(len, text.splitlines())) <= 80
    for param in info.params if kind == "nets" else info.options:
        assert f"{param.name}=" in text


@pytest.mark.parametrize("kind", ROOMS)
def test_json_for_programs(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([kind, "--json"])
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list(ROOMS[kind].names())


def test_an_unknown_name_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nets", "resnet65"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("layerscope: no reference network 'resnet65': did you mean 'resnet56'")


@pytest.mark.parametrize("kind", ROOMS)
def test_lists_load_no_torch(kind: str) -> None:
    code = f"import sys; from layerscope.cli import main; main([{kind!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
