"""Data sets read from disk: tiny files in the real formats, whole and damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from layerscope import data
from layerscope.data import idx, places
from layerscope.errors import DataError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def only_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set of this machine may answer in place of the one under test."""
    monkeypatch.setenv(places.ENVIRONMENT, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(idx, "_SYSTEM", ())


# Fashion-MNIST


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_fashion(folder: Path, *, packed: bool = True, n: int = 12) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for stem, count in (("train", n), ("t10k", n // 2)):
        made[f"{stem}-images-idx3-ubyte"] = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        made[f"{stem}-labels-idx1-ubyte"] = RNG.integers(0, 10, count).astype(np.uint8)
    for name, values in made.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (folder / name).write_bytes(idx_bytes(values))
    return made


@pytest.mark.parametrize("folder", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_in_every_layout(tmp_path: Path, folder: str, packed: bool) -> None:
    made = write_fashion(tmp_path / folder, packed=packed)
    train, test, both = (data.load("fashion-mnist", split) for split in ("train", "test", "all"))
    torch.testing.assert_close(
        (train.x[:, 0] + 1) * 127.5, torch.from_numpy(made["train-images-idx3-ubyte"]).float(), atol=1e-4, rtol=0
    )
    assert train.y.tolist() == made["train-labels-idx1-ubyte"].tolist()
    assert (len(test), len(both)) == (6, 18)


def test_an_explicit_root_is_the_only_place_looked_in(tmp_path: Path) -> None:
    write_fashion(tmp_path / "fashion-mnist")
    assert len(data.load("fashion-mnist", root=tmp_path)) == 12
    with pytest.raises(DataError, match="elsewhere") as caught:
        data.load("fashion-mnist", root=tmp_path / "elsewhere")
    assert "looked in" in str(caught.value)
    assert "download=true" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw: raw[:-5], "cut off"),
        (lambda raw: raw + b"x", "overlong"),
        (lambda raw: b"", "starts with nothing"),
        (lambda raw: b"\x00\x00\x0d" + raw[3:], "no IDX file of bytes"),
        (lambda raw: raw[:3] + b"\x01" + raw[4:], "no IDX file of bytes"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, damage, says: str) -> None:
    write_fashion(tmp_path, packed=False)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=says):
        data.load("fashion-mnist")


def test_a_damaged_archive(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(DataError, match="damaged"):
        data.load("fashion-mnist")
    file.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match="damaged"):
        data.load("fashion-mnist")


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    write_fashion(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match="12 images but 11 labels"):
        data.load("fashion-mnist")


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_fashion(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(12, 10, np.uint8)))
    with pytest.raises(DataError, match="labels run from 10 to 10"):
        data.load("fashion-mnist")


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package is not installed")
def test_debians_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_SYSTEM", ("/usr/share/datasets/fashion-mnist",))
    test = data.load("fashion-mnist", "test")
    assert np.bincount(test.y.numpy()).tolist() == [1000] * 10
    folder = Path("/usr/share/datasets/fashion-mnist")
    assert all(places._sha256(folder / file) == digest for file, digest in idx._SHA256.items())


# download, from a server that is a folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "server"
    made = write_fashion(folder)
    monkeypatch.setattr(idx, "_URLS", ((tmp_path / "down").as_uri() + "/", folder.as_uri() + "/"))
    digests = {f"{name}.gz": hashlib.sha256(idx_bytes(values)).hexdigest() for name, values in made.items()}
    monkeypatch.setattr(idx, "_SHA256", digests)
    return folder


def test_a_download_is_verified_and_used_again(server: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not on this machine"):
        data.load("fashion-mnist")
    assert len(data.load("fashion-mnist:download=true")) == 12
    for file in server.iterdir():
        file.unlink()
    assert len(data.load("fashion-mnist")) == 12
    assert len(list((tmp_path / "fashion-mnist").iterdir())) == 4


def test_another_packing_of_the_same_bytes_is_the_same_file(server: Path) -> None:
    for file in server.iterdir():
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 1, mtime=7))
    assert len(data.load("fashion-mnist:download=true")) == 12


def test_a_download_with_a_wrong_checksum_leaves_nothing_behind(server: Path, tmp_path: Path) -> None:
    file = server / "train-images-idx3-ubyte.gz"
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[100] ^= 1
    file.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DataError, match="SHA-256"):
        data.load("fashion-mnist:download=true")
    assert not (tmp_path / "fashion-mnist" / file.name).exists()
    assert not [p for p in (tmp_path / "fashion-mnist").iterdir() if p.name not in idx._SHA256]


def test_offline_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_URLS", ((tmp_path / "nowhere").as_uri() + "/",))
    with pytest.raises(DataError, match=r"could not be downloaded.*Offline"):
        data.load("fashion-mnist:download=true")


# CIFAR


def cifar_rows(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (n, 3072), np.uint8), RNG.integers(0, classes, n)


def batches(name: str) -> tuple[list[str], int, bytes]:
    if name == "cifar10":
        return [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], 10, b"labels"
    return ["train", "test"], 100, b"fine_labels"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar_in_both_versions(tmp_path: Path, name: str, version: str) -> None:
    files, classes, key = batches(name)
    folder = {
        ("cifar10", "binary"): "cifar-10-batches-bin",
        ("cifar10", "python"): "cifar-10-batches-py",
        ("cifar100", "binary"): "cifar-100-binary",
        ("cifar100", "python"): "cifar-100-python",
    }[(name, version)]
    (tmp_path / folder).mkdir()
    pixels, labels = [], []
    for file in files:
        x, y = cifar_rows(3, classes)
        pixels.append(x)
        labels.append(y)
        if version == "python":
            # protocol 2, as the published files: arrays travel as text through _codecs.encode
            content = {b"data": x, key: y.tolist(), b"batch_label": b"one", b"filenames": [b"a.png"] * 3}
            (tmp_path / folder / file).write_bytes(pickle.dumps(content, protocol=2))
        else:
            lead = [np.zeros(3, np.uint8), y] if name == "cifar100" else [y]
            rows = np.column_stack([*lead, x]).astype(np.uint8)
            (tmp_path / folder / f"{file}.bin").write_bytes(rows.tobytes())
    whole = data.load(name, "all")
    assert whole.classes == classes
    assert whole.y.tolist() == np.concatenate(labels).tolist()
    expected = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, 32, 32)).float()
    torch.testing.assert_close((whole.x + 1) * 127.5, expected, atol=1e-4, rtol=0)
    assert len(data.load(name, "test")) == 3


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({b"data": Evil(), b"fine_labels": [1]}, "do not trust"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "damaged"),
        ({b"data": np.zeros((1, 3071), np.uint8), b"fine_labels": [1]}, "rows of 3072"),
        ({b"data": np.zeros((1, 3072), np.float32), b"fine_labels": [1]}, "rows of 3072"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1]}, "rows of 3072"),
        ([1, 2], "damaged"),
    ],
)
def test_python_cifar_files_are_read_without_trust(tmp_path: Path, content: object, says: str) -> None:
    (tmp_path / "train").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=says):
        data.load("cifar100", root=tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\x80", b"not a pickle", pickle.dumps({b"data": 1})[:-3]])
def test_files_that_are_no_pickle(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "train").write_bytes(raw)
    with pytest.raises(DataError, match=r"train"):
        data.load("cifar100", root=tmp_path)


def test_cut_off_binary_cifar(tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073 + 5))
    with pytest.raises(DataError, match="cut off"):
        data.load("cifar10", "test", root=tmp_path)


def test_absent_cifar_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked in .*cifar-10-batches-bin"):
        data.load("cifar10")


# the user's own


def test_own_data_must_say_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="imagefolder:path="):
        data.load("imagefolder")
    with pytest.raises(DataError, match="does not exist"):
        data.load(f"npz:path={tmp_path}/none.npz")


def test_arrays_of_bytes_and_of_floats(tmp_path: Path) -> None:
    y = np.arange(10) % 3
    np.savez(tmp_path / "bytes.npz", x=RNG.integers(0, 256, (10, 5, 5), np.uint8), y=y)
    np.savez(tmp_path / "floats.npz", x=RNG.normal(size=(10, 7)), y=y, x_test=RNG.normal(size=(4, 7)), y_test=y[:4])
    assert data.load(f"npz:path={tmp_path}/bytes.npz,size=8,channels=3").in_shape == (3, 8, 8)
    assert [len(data.load(f"npz:path={tmp_path}/bytes.npz", s)) for s in ("train", "test", "all")] == [8, 2, 10]
    assert [len(data.load(f"npz:path={tmp_path}/floats.npz", s)) for s in ("train", "test", "all")] == [10, 4, 14]
    assert len(data.load(f"npz:path={tmp_path}/floats.npz,limit=3")) == 3
    with pytest.raises(DataError, match="used as they are"):
        data.load(f"npz:path={tmp_path}/floats.npz,size=8")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((4, 2))}, "named x and y"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, "whole-number labels"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, "whole-number labels"),
        ({"x": np.zeros((4, 2), int), "y": np.zeros(4, int)}, "expected uint8"),
        ({"x": np.zeros((4, 2), np.uint8), "y": np.zeros(4, int)}, r"expected images \[N, H, W\]"),
        ({"x": np.full((4, 2), np.nan), "y": np.zeros(4, int)}, "NaN"),
        ({"x": np.zeros((4, 2)), "y": np.full(4, -1)}, "labels run from -1"),
        ({"x": np.array([{}, {}]), "y": np.zeros(2, int)}, "not a readable"),
    ],
)
def test_arrays_that_are_no_data(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        data.load(f"npz:path={tmp_path}/a.npz", "all")


def one_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04 broken", b"text", one_array()])
def test_files_that_are_no_npz(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(DataError, match="not a readable"):
        data.load(f"npz:path={tmp_path}/a.npz")
