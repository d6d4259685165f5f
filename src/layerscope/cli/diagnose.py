"""``layerscope diagnose``: one network as it is."""

from __future__ import annotations

from layerscope.cli.options import Output, OutputOptions, Probe, ProbeOptions, Source


def diagnose(
    source: Source,
    probe: Probe = ProbeOptions(),  # noqa: B008 - frozen, and tyro reads its defaults
    output: Output = OutputOptions(),  # noqa: B008
) -> None:
    """One network as it is, nothing exchanged: where its activations or gradients go wrong, and what to do.

    Args:
        source: timm:resnet18, torchvision:resnet18, file.py:factory, pkg.mod:factory, or a reference net.
        probe: What is probed, on what.
        output: Where the result goes.
    """
    from layerscope import comparison

    output.check()
    output.deliver(comparison.diagnose(source, progress=True, **probe.arguments()))


COMMAND = diagnose
