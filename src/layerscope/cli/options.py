"""Options that ``compare`` and ``diagnose`` share, and what is done with their result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from layerscope._show import writable

if TYPE_CHECKING:
    from layerscope.verdict.types import Comparison

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]


def _optional(metavar: str) -> Any:
    """An option that may be left out, without the word None in its help."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True)
class ProbeOptions:
    """What is probed, on what."""

    data: Annotated[str, tyro.conf.arg(metavar="DATA")] = "digits"
    """Such as digits:size=16 (see `layerscope data`), or file.py:function returning (x, y) or batches of them."""
    batch_size: int = 32
    """The batch size you will train with: what BatchNorm sees."""
    chunks: Annotated[int | None, _optional("INT")] = None
    """Batches of that size to average over; left out, as many as make 32 samples, or as the data has."""
    seeds: int = 1
    """How many random initializations to probe."""
    classes: Annotated[int | None, _optional("INT")] = None
    """Number of outputs; left out, as the data has."""
    level: Literal["light", "standard", "deep"] = "standard"
    """How much to measure."""
    loss: Literal["cross_entropy", "mse", "unlabeled"] = "cross_entropy"
    """What is differentiated; unlabeled takes half the mean square of the output, whatever the labels."""
    output: Annotated[str | None, _optional("KEY")] = None
    """Key or index of the output to use, for a network that returns several."""
    micro_steps: int = 0
    """Also train a copy for so many real steps (10 to 20 suffice) and let the verdict see them."""
    lr: float = 0.1
    """The learning rate of those steps."""
    device: Annotated[str | None, _optional("DEVICE")] = None
    """Where to probe, such as cuda; left out, where the network is."""

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of ``layerscope.compare``; an output that is a number is an index."""
        arguments = asdict(self)
        if self.output is not None and self.output.lstrip("-").isdigit():
            arguments["output"] = int(self.output)
        return arguments


@dataclass(frozen=True)
class OutputOptions:
    """Where the result goes beside the terminal."""

    html: Annotated[Path | None, _optional("FILE")] = None
    """Write one self-contained page here."""
    json: Annotated[Path | None, _optional("FILE")] = None
    """Write every number here."""

    def check(self) -> None:
        """Find out now whether the files can be written, and not after minutes of work."""
        for path in (self.html, self.json):
            if path is not None:
                writable(path)

    def deliver(self, result: Comparison) -> None:
        """Print the result, and write the files that were asked for."""
        from layerscope import report

        report.print_result(result)
        if self.html:
            print(f"page: {result.to_html(self.html)}")
        if self.json:
            print(f"numbers: {result.to_json(self.json)}")


Probe = Annotated[ProbeOptions, tyro.conf.arg(name="")]
Output = Annotated[OutputOptions, tyro.conf.arg(name="")]
