"""``layerscope compare``: several norms in one network."""

from __future__ import annotations

from typing import Annotated

import tyro

from layerscope.cli.options import Output, OutputOptions, Probe, ProbeOptions, Source


def compare(
    source: Source,
    norm: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NORM")] = (),
    probe: Probe = ProbeOptions(),  # noqa: B008 - frozen, and tyro reads its defaults
    output: Output = OutputOptions(),  # noqa: B008
) -> None:
    """Which normalization layer will train in this network, which will not, and why.

    Args:
        source: resnet56, cfg_20, timm:resnet18, torchvision:resnet18, file.py:factory or pkg.mod:factory.
        norm: A norm such as group:size=8 (see `layerscope norms`); repeat for more. `as is` leaves the network alone.
            Left out: nine families.
        probe: What is probed, on what.
        output: Where the result goes.
    """
    from layerscope import comparison

    output.check()
    wanted = norm or comparison.STANDARD_NORMS
    output.deliver(comparison.compare(source, wanted, progress=True, **probe.arguments()))


COMMAND = compare
