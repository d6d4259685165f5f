"""Where data sets lie on disk, and the download that puts one there: only when asked for, checksums verified."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from layerscope.errors import DataError

ENVIRONMENT = "LAYERSCOPE_DATA"


def cache() -> Path:
    """The folder that downloads go to: ``$LAYERSCOPE_DATA``, or ``layerscope`` in the user's cache folder."""
    if set_by_user := os.environ.get(ENVIRONMENT):
        return Path(set_by_user).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # which keeps ~ where nobody has a home
    return Path(base) / "layerscope"


def candidates(root: str | Path | None, folders: Sequence[str], fixed: Sequence[str] = ()) -> list[Path]:
    """Folders that may hold a data set, best first.

    Args:
        root: the only place to look, if given.
        folders: names that the data set's folder may have inside a place; ``""`` is the place itself.
        fixed: folders of the system's packages.
    """
    places = [Path(root).expanduser()] if root is not None else [cache(), Path("data")]
    found = [place / folder if folder else place for place in places for folder in folders]
    return found if root is not None else found + [Path(f) for f in fixed]


def not_found(name: str, looked: Iterable[Path], advice: str) -> DataError:
    """The error for a data set that is nowhere: where it was looked for, and what to do."""
    where = ", ".join(str(path) for path in looked)
    return DataError(f"{name} is not on this machine; looked in {where}. {advice}")


def download(name: str, urls: Sequence[str], sha256: Mapping[str, str], folder: Path, timeout: float = 30) -> None:
    """Fetch files into ``folder``; a file stands there under its name only once its checksum has been verified.

    Args:
        name: of the data set, for messages.
        urls: base addresses, tried in order.
        sha256: file name -> hex digest of the file, unpacked if it ends in ``.gz``.
        folder: made if it does not exist.
        timeout: seconds without an answer after which an address is given up.

    Raises:
        DataError: no address answers, or what it sends has another checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, digest in sha256.items():
        if not (folder / file).exists():
            _fetch(name, [base + file for base in urls], digest, folder / file, timeout)


def _fetch(name: str, urls: Sequence[str], digest: str, target: Path, timeout: float) -> None:
    failures = []
    for url in urls:
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
        try:
            with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=timeout) as answer:
                shutil.copyfileobj(answer, out)
            if (got := _sha256(Path(temporary))) == digest:
                os.replace(temporary, target)
                return
            failures.append(f"{url} sent a file with SHA-256 {got[:12]}..., expected {digest[:12]}...")
        except (urllib.error.URLError, OSError, EOFError, zlib.error) as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise DataError(
        f"{name} could not be downloaded ({'; '.join(failures)}). Offline? Copy {target.name} and its sister files "
        f"into {target.parent}"
    )


def _sha256(path: Path) -> str:
    """Of the content: a gzip header holds a time and a name, so that two packings of one file differ."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
