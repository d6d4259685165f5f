from __future__ import annotations

import pytest
import torch

from layerscope.stored import UnreadableError, read_stored


def test_what_was_saved_comes_back(tmp_path):
    torch.save({"a": torch.ones(2), "b": [1, "x"]}, tmp_path / "a.pt")
    found = read_stored(tmp_path / "a.pt")
    assert torch.equal(found["a"], torch.ones(2))
    assert found["b"] == [1, "x"]


@pytest.mark.parametrize("content", [b"", b"junk\n", b"\x80\x02.", b"]]", bytes(range(256))])
def test_anything_else_is_one_line(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UnreadableError, match=r"^.+$"):
        read_stored(tmp_path / "a.pt")


def test_code_is_not_run(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(UnreadableError):
        read_stored(tmp_path / "a.pt")
    with pytest.raises(UnreadableError):
        read_stored(tmp_path / "missing.pt")
