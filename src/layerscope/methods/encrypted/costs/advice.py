"""Width-aware advice: which bits, shifts and accumulators need the fewest bootstraps under an accuracy budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from torch import Tensor, nn

from layerscope.methods.encrypted.costs.cost import cost
from layerscope.methods.encrypted.costs.records import Advice, CostReport
from layerscope.methods.encrypted.errors import QuantizationError
from layerscope.methods.encrypted.floatgraph import FloatGraph
from layerscope.methods.encrypted.network import QuantizedNet, quantize
from layerscope.methods.encrypted.qat import finetune
from layerscope.methods.encrypted.trace import trace


def advise(
    model: nn.Module,
    in_shape: Sequence[int],
    *,
    calib: Tensor | None = None,
    valid: tuple[Tensor, Tensor] | None = None,
    train: tuple[Tensor, Tensor] | None = None,
    most_loss: float = 0.02,
    bits: Sequence[int] = (2, 3, 4),
    act_bits: Sequence[int] = (2, 3, 4),
    lookup_bits: Sequence[int] = (5, 6),
    seed: int = 0,
) -> tuple[Advice, ...]:
    """Combinations of widths by price, cheapest first; with data, the cheapest one within the accuracy budget.

    Fewer exponents and activation bits narrow the accumulators, so that fewer low bits have to be removed; narrower
    lookups cost less each and may cost accuracy. Without data the list is a list of prices and promises nothing.

    Args:
        model: a float network in evaluation mode.
        in_shape: (channels, height, width).
        calib: float inputs for the scales; needed to measure accuracy.
        valid: inputs and labels on which each candidate is measured, cheapest first.
        train: with it, each candidate is trained with the quantiser in the loop before it is measured.
        most_loss: accuracy that may be lost against the float network.
        bits: weight codes to try.
        act_bits: activation codes to try.
        lookup_bits: lookup widths to try.
        seed: of the training.

    Raises:
        QuantizationError: ``valid`` without ``calib``.
    """
    if valid is not None and calib is None:
        raise QuantizationError("measuring accuracy needs calib=, a batch of inputs for the scales")
    base = cost(model, in_shape, accumulators=("csa",)).bootstraps
    rows: list[tuple[CostReport, Advice, tuple[int, int, int]]] = []
    for b, a, limit in product(bits, act_bits, lookup_bits):
        if limit <= a:
            continue  # the sign and the kept bits would not fit
        priced = cost(model, in_shape, bits=b, act_bits=a, lookup_bits=limit, accumulators=("csa",))
        widest = max((layer.lookup_bits or 0 for layer in priced.layers), default=0)
        change = f"bits={b}, act_bits={a}, lookup_bits={limit}"
        row = Advice(change, priced.bootstraps, _share(priced.bootstraps, base), None, widest)
        rows.append((priced, row, (b, a, limit)))
    rows.sort(key=_order)
    if valid is None or calib is None:
        return tuple(row for _, row, _ in rows)
    graph = trace(model, in_shape)
    reference = _accuracy(model, *valid)
    for _, row, (b, a, limit) in rows:
        net = _candidate(graph, calib, valid, train, b, a, limit, seed)
        real = cost(net, accumulators=("csa",))
        found = _accuracy(net, *valid)
        if found >= reference - most_loss:
            factor = _share(real.bootstraps, base)
            return (replace(row, accuracy=found, bootstraps=real.bootstraps, factor=factor),)  # the rest costs more
    return ()


def _order(row: tuple[CostReport, Advice, tuple[int, int, int]]) -> tuple[float, int]:
    report, advice, _ = row
    seconds = report.lookup_seconds
    return (seconds if seconds is not None else float(advice.bootstraps), advice.bootstraps)


def _share(after: int, before: int) -> float:
    return after / before if before else 1.0


def _candidate(
    graph: FloatGraph,
    calib: Tensor,
    valid: tuple[Tensor, Tensor],
    train: tuple[Tensor, Tensor] | None,
    bits: int,
    act_bits: int,
    lookup_bits: int,
    seed: int,
) -> QuantizedNet:
    net = quantize(graph, calib, bits=bits, act_bits=act_bits, lookup_bits=lookup_bits)
    if train is None:
        return net
    return finetune(net, train, calib, valid=valid, epochs=1, rounds=2, seed=seed)


def _accuracy(net: nn.Module | QuantizedNet, x: Tensor, y: Tensor) -> float:
    import torch

    with torch.no_grad():
        logits = net.decode(net.integers(net.encode(x, clip=True))) if isinstance(net, QuantizedNet) else net(x)
    return float((logits.argmax(1) == y).float().mean())
