"""Where numbers go while a run is under way: one small protocol, and adapters to trackers, imported when made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from layerscope.errors import TrainingError
from layerscope.plain import to_plain


@runtime_checkable
class Sink(Protocol):
    """Takes numbers by name, with the step they belong to."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of one step; steps come in increasing order."""
        ...


class MemorySink:
    """Keeps everything in a list of ``(step, values)``."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep a copy."""
        self.rows.append((step, dict(values)))

    def series(self, name: str) -> list[tuple[int, float]]:
        """``(step, value)`` of one name."""
        return [(step, values[name]) for step, values in self.rows if name in values]


class JsonlSink:
    """Appends one JSON object a line; a killed run leaves whole lines but for at most the last one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one line and hand it to the system."""
        self._file.write(json.dumps({"step": step, **to_plain(dict(values))}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Event files for TensorBoard, in ``folder``."""

    def __init__(self, folder: str | Path) -> None:
        torchs = _optional("tensorboard", "TensorBoardSink", "torch.utils.tensorboard.writer")
        self._writer = torchs.SummaryWriter(str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is left and close."""
        self._writer.close()


class WandbSink:
    """Weights & Biases: the run that is active, or a new one with these arguments of ``wandb.init``."""

    def __init__(self, **init: Any) -> None:
        self._wandb = _optional("wandb", "WandbSink")
        self._run = self._wandb.run if self._wandb.run is not None and not init else self._wandb.init(**init)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """All names of one step together."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MlflowSink:
    """MLflow: the run that is active, or a new one."""

    def __init__(self, run_name: str | None = None) -> None:
        self._mlflow = _optional("mlflow", "MlflowSink")
        self._own = self._mlflow.active_run() is None
        if self._own:
            self._mlflow.start_run(run_name=run_name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """All names of one step together."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run if this sink began it."""
        if self._own:
            self._mlflow.end_run()


class TrackioSink:
    """Trackio: a new run of ``project``."""

    def __init__(self, project: str, **init: Any) -> None:
        self._trackio = _optional("trackio", "TrackioSink")
        self._trackio.init(project=project, **init)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """All names of one step together."""
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()


def _optional(package: str, purpose: str, module: str | None = None) -> Any:
    """Import an optional package; one that is installed and does not import raises its own error."""
    try:
        return import_module(module or package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise TrainingError(f"{purpose} needs the package {package!r}: pip install {package}") from None
