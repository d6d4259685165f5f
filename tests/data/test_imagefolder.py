"""Folders of images, whole and damaged, and a machine without Pillow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from layerscope import data
from layerscope.errors import DataError, MissingExtraError

Image = pytest.importorskip("PIL.Image")


def write_images(folder: Path, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            value = (40 * len(name), 10 * i, 255)
            Image.new("RGB", (10, 6), value).save(folder / name / f"{i}.png")


def test_an_image_folder_with_its_own_split(tmp_path: Path) -> None:
    write_images(tmp_path / "pets" / "train", {"cat": 3, "mouse": 2})
    write_images(tmp_path / "pets" / "val", {"cat": 1, "mouse": 1})
    spec = f"imagefolder:path={tmp_path / 'pets'},size=8"
    train, test = data.load(spec), data.load(spec, "test")
    assert (train.in_shape, train.classes, len(train), len(test)) == ((3, 8, 8), 2, 5, 2)
    red = (train.x[:, 0].mean((1, 2)) + 1) * 127.5
    torch.testing.assert_close(red, torch.where(train.y == 0, 120.0, 200.0), atol=0.01, rtol=0)
    assert len(data.load(spec, "all")) == 7


def test_an_image_folder_without_split_keeps_every_fifth_image(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 10, "b": 5})
    train, test = (data.load("imagefolder:size=4,channels=1", split, root=tmp_path) for split in ("train", "test"))
    assert (len(train), len(test), train.in_shape) == (12, 3, (1, 4, 4))
    x, _ = data.batch(f"imagefolder:path={tmp_path},size=4", 5, seed=1)
    assert x.shape == (5, 3, 4, 4)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda p: None, "no class folders"),
        (lambda p: (p / "a").mkdir(), "holds no images"),
        (lambda p: ((p / "a").mkdir(), (p / "a" / "1.png").write_bytes(b"no image")), "cannot be read as an image"),
    ],
)
def test_image_folders_that_are_none(tmp_path: Path, prepare, says: str) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError, match=says):
        data.load("imagefolder", "all", root=tmp_path)


def test_reading_images_needs_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, {"a": 2})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"Pillow.*layerscope\[zoo\]"):
        data.load("imagefolder", "all", root=tmp_path)


def test_what_other_programs_leave_in_folders_is_no_class_and_no_image(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 5, "b": 5})
    for litter in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (tmp_path / litter).mkdir()
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"")
    found = data.load(f"imagefolder:path={tmp_path},size=4", "all")
    assert (found.classes, len(found)) == (2, 10)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixel_keeps_its_brightness(mode: str, tmp_path: Path) -> None:
    """Half grey, or as near to it as one bit comes on average, in every mode."""
    (tmp_path / "a").mkdir()
    grey = Image.new("L", (32, 32), 128)
    picture = grey.convert("P") if mode == "P" else grey.convert(mode) if mode != "I;16" else None
    if picture is None:
        picture = Image.fromarray((torch.full((32, 32), 128 * 257).numpy()).astype("uint16"))
    picture.save(tmp_path / "a" / ("0.tif" if mode == "CMYK" else "0.png"))
    x = data.load(f"imagefolder:path={tmp_path},size=8", "all").x
    assert abs(float(x.mean())) < (0.1 if mode == "1" else 0.01)
