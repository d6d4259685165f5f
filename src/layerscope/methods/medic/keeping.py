"""What a long removal keeps on disk while it is under way, so that a kill costs the step or the run in flight only."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerscope import training
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.records import Scores
from layerscope.methods.medic.step import CloneStep
from layerscope.training.checkpoint import require_same
from layerscope.training.seeds import digest

#: (epochs done, student, numbers of the last step)
OnEpoch = Callable[[int, nn.Module, Mapping[str, float]], None]

_FORMAT = 1


def fingerprint(tensors: Mapping[str, Any]) -> str:
    """Eight hex digits that tell tensors of other names, types, shapes or values apart."""
    parts: list[str | bytes] = []
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            parts += [f"{name} {value.dtype} {tuple(value.shape)}", raw.numpy().tobytes()]
    return digest(*parts)


class Course(training.Callback):
    """A clone under way: tells the user's function, and keeps beside the training what the report will need."""

    def __init__(self, of: Mapping[str, str], step: CloneStep | None, call: OnEpoch | None, path: Path | None) -> None:
        """Follow a run.

        Args:
            of: what is cloned and how; a file of another clone is refused.
            step: the step whose record is kept; None where nothing is compared.
            call: the user's function.
            path: the file, as errors name it.
        """
        self.of, self.step, self.call, self.path = dict(of), step, call, path

    def on_epoch(self, run: training.Run) -> None:
        """Hand on the epoch, the student and its last numbers."""
        if self.call is not None:
            self.call(run.epoch, run.model, {"loss": run.loss, **run.metrics})

    def state_dict(self) -> dict[str, Any]:
        """The settings, and the step's record."""
        return {"of": self.of, "step": None if self.step is None else self.step.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            TrainingError: it is of another clone.
        """
        require_same(self.path or Path(), state.get("of", {}), self.of)
        if self.step is not None:
            self.step.load_state_dict(state["step"])


@dataclass(frozen=True)
class Finished:
    """One run of one defence."""

    seconds: float
    scores: dict[str, Scores]
    """By trigger."""


class Kept:
    """The finished runs of a comparison, in memory and, where there is a file, a line each."""

    def __init__(self, path: Path | None, of: Mapping[str, str]) -> None:
        """Read what is there.

        Args:
            path: the file; None for none.
            of: what is compared on what.

        Raises:
            MedicError: the file cannot be used, or is one of another comparison.
        """
        self.path, self.of = path, dict(of)
        self.found: dict[tuple[str, str, int], Finished] = {}
        if path is None:
            return
        try:
            text = path.read_text() if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise MedicError(f"{path} cannot be read: {error}") from None
        self.is_cut = bool(text) and not text.endswith("\n")
        # what follows the last line break was being written when the run was killed
        lines = text.split("\n")[:-1]
        if lines or text:
            self._require_same(lines[0] if lines else text)
        for line in lines[1:]:
            self._take(line)
        if not lines:
            self._write({"layerscope_comparison": _FORMAT, "of": self.of})

    def run(self, name: str, settings: str, seed: int, do: Callable[[], Finished]) -> Finished:
        """A run that is kept already, or else what ``do`` gives, which is kept from now on."""
        key = (name, settings, seed)
        if key not in self.found:
            self.found[key] = done = do()
            scores = {label: dataclasses.asdict(found) for label, found in done.scores.items()}
            self._write(
                {"defence": name, "settings": settings, "seed": seed, "seconds": done.seconds, "scores": scores}
            )
        return self.found[key]

    def _require_same(self, line: str) -> None:
        try:
            head = json.loads(line)
            then = head["of"] if head["layerscope_comparison"] == _FORMAT else None
        except (ValueError, TypeError, LookupError):
            then = None
        if not isinstance(then, dict):
            raise MedicError(f"{self.path} holds no finished runs of a comparison: choose another path")
        if changed := [key for key in {**then, **self.of} if then.get(key) != self.of.get(key)]:
            raise MedicError(f"{self.path} is of another comparison ({', '.join(changed)} differ): choose another path")

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            scores = {label: Scores(**values) for label, values in row["scores"].items()}
            key = (row["defence"], row["settings"], row["seed"])
            self.found[key] = Finished(row["seconds"], scores)
        except (ValueError, TypeError, LookupError, AttributeError):
            # a line that was cut off and written on
            return

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("\n" * self.is_cut + json.dumps(row) + "\n")
        except OSError as error:
            raise MedicError(f"{self.path} cannot be written: {error.strerror or error}") from None
        self.is_cut = False


def settings_of(defence: Callable[..., Any]) -> str:
    """A defence in words that are the same in the next process."""
    if dataclasses.is_dataclass(defence):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(defence))
    return str(getattr(defence, "__qualname__", type(defence).__qualname__))
