"""``layerscope demo``: the main job from end to end on bundled data."""

from __future__ import annotations

from pathlib import Path

#: Every family that the two networks can take; ResNet-56's narrowest stage has 32 channels, so groups of 8 divide.
NORMS = ("none", "batch", "layer", "instance", "group:size=8", "frn", "evonorm-s0", "weight", "sws")


def demo(out: Path = Path("out/demo"), size: int = 32, batch_size: int = 32, seeds: int = 1) -> None:
    """Nine norms in ResNet-56 and in a plain 20-layer net, then BatchNorm at batch size 4: verdicts and HTML pages.

    Args:
        out: Folder for the pages.
        size: Images are the bundled digits, resized to this many pixels.
        batch_size: The batch size that training would use.
        seeds: How many random initializations to probe.
    """
    import time

    from layerscope import comparison, report

    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    jobs = (
        ("resnet56", NORMS, batch_size, "resnet56.html"),
        ("cfg_20", NORMS, batch_size, "cfg_20.html"),
        ("cfg_20", ("batch", "renorm", "group:size=8"), 4, "cfg_20-batch4.html"),
    )
    pages = []
    for source, norms, batch, page in jobs:
        result = comparison.compare(source, norms, f"digits:size={size}", batch_size=batch, seeds=seeds, progress=True)
        report.print_result(result)
        pages.append(result.to_html(out / page))
    print(f"\n{time.perf_counter() - started:.0f} s for {sum(len(n) for _, n, _, _ in jobs)} choices. Pages:")
    for path in pages:
        print(f"  {path}")


COMMAND = demo
