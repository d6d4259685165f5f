"""Width-aware advice: the bits, shifts and channels that need the fewest bootstraps under an accuracy budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from layerscope.methods.encrypted.costs.cost import cost
from layerscope.methods.encrypted.costs.records import Advice, Advised, CostReport
from layerscope.methods.encrypted.errors import QuantizationError
from layerscope.methods.encrypted.floatgraph import FloatGraph
from layerscope.methods.encrypted.narrowing import narrow, widths
from layerscope.methods.encrypted.network import QuantizedNet, quantize
from layerscope.methods.encrypted.qat import finetune
from layerscope.methods.encrypted.trace import trace

Data = tuple[Tensor, Tensor]
#: One-sided 95 % of a normal.
_QUANTILE = 1.645


def advise(
    model: nn.Module,
    in_shape: Sequence[int],
    *,
    calib: Tensor | None = None,
    valid: Data | None = None,
    train: Data | None = None,
    most_loss: float = 0.02,
    base: tuple[int, int, int] = (4, 4, 6),
    bits: Sequence[int] = (2, 3, 4),
    act_bits: Sequence[int] = (2, 3, 4),
    lookup_bits: Sequence[int] = (5, 6),
    channels: Sequence[float] = (1.0, 0.75, 0.5),
    epochs: int = 2,
    rounds: int = 2,
    tries: int = 16,
    seed: int = 0,
    watch: Callable[[Advice], None] | None = None,
) -> Advised:
    """What needs fewer bootstraps than ``base``; with data, the fewest that stay within the accuracy budget.

    Fewer exponents and activation bits narrow the accumulators, so that fewer low bits have to be removed; wider
    lookups leave fewer of them to remove and cost more each; fewer channels mean fewer of everything
    (:func:`~layerscope.methods.encrypted.narrow`). Without ``valid`` the list is one of prices and promises nothing.

    With it, ``valid`` is cut in two at random. On the first half candidates are measured, dearer and cheaper ones in
    turn: one that passes rules out all dearer ones, one that fails all that have no more of anything. The cheapest that
    passed is then judged on the second half, which nothing was chosen on; if it loses too much there, it counts as
    failed and the search goes on among those that cost more.

    Args:
        model: a float network in evaluation mode.
        in_shape: (channels, height, width).
        calib: float inputs for the scales and for the worth of channels; needed to measure accuracy.
        valid: inputs and labels, held back from training.
        train: with it, each candidate is trained with the quantiser in the loop before it is measured.
        most_loss: accuracy that may be lost against the float network.
        base: (bits, act_bits, lookup_bits) of the settings to beat, with all channels.
        bits: weight codes to try.
        act_bits: activation codes to try.
        lookup_bits: lookup widths to try.
        channels: shares of the activations' lookups to keep.
        epochs: passes over ``train`` in each round of training.
        rounds: of training, see :func:`~layerscope.methods.encrypted.finetune`.
        tries: candidates to measure at most.
        seed: of the training and of the cut of ``valid``.
        watch: called with every candidate as it is measured.

    Raises:
        QuantizationError: ``valid`` without ``calib``, fewer than 20 held-back samples, or settings out of range.
        UnsupportedModuleError: accuracy asked of a network that cannot be quantised.
    """
    if valid is not None and calib is None:
        raise QuantizationError("measuring accuracy needs calib=, a batch of inputs for the scales")
    if valid is not None and (len(valid[0]) != len(valid[1]) or len(valid[0]) < 20):
        raise QuantizationError(
            f"expected at least 20 held-back samples with labels, got {len(valid[0])} and {len(valid[1])}"
        )
    graph = trace(model, in_shape)
    start = _priced(graph, *base)
    narrowed = {share: narrow(graph, calib, share) for share in (1.0, *channels)}
    rows = []
    for share, b, a, limit in product(channels, bits, act_bits, lookup_bits):
        if limit > a:  # else the sign and the kept bits would not fit
            row = _row(_priced(narrowed[share], b, a, limit), start, share, limit)
            rows.append(replace(row, widths=widths(graph, narrowed[share])))
    rows = sorted((row for row in rows if row.bootstraps < start.bootstraps), key=_price)
    found = Advised(start.source, tuple(rows), start.bootstraps, base, most_loss)
    if valid is None or calib is None:
        return replace(found, reason="prices only: no data was given to measure accuracy on")
    judge = _Judge(model, narrowed, calib, valid, train, epochs, rounds, seed)
    return _searched(found, judge, start, tries, watch or (lambda row: None))


class _Judge:
    """Makes a candidate and measures it on either half of the held-back data."""

    def __init__(
        self,
        model: nn.Module,
        narrowed: dict[float, FloatGraph],
        calib: Tensor,
        valid: Data,
        train: Data | None,
        epochs: int,
        rounds: int,
        seed: int,
    ) -> None:
        order = torch.randperm(len(valid[0]), generator=torch.Generator().manual_seed(seed))
        self.halves = [(valid[0][part], valid[1][part]) for part in order.tensor_split(2)]
        with torch.no_grad():
            self.float_hits = [model(x).argmax(1) == y for x, y in self.halves]
        self.narrowed, self.calib, self.train = narrowed, calib, train
        self.epochs, self.rounds, self.seed = epochs, rounds, seed

    def make(self, row: Advice) -> QuantizedNet:
        """The candidate, trained if there is data for it."""
        graph = self.narrowed[row.channels]
        net = quantize(graph, self.calib, bits=row.bits, act_bits=row.act_bits, lookup_bits=row.lookup_bits)
        if self.train is None:
            return net
        return finetune(
            net,
            self.train,
            self.calib,
            valid=self.halves[0],
            epochs=self.epochs,
            rounds=self.rounds,
            seed=self.seed,
        )

    def price(self, net: QuantizedNet) -> CostReport:
        """With its real ranges and shifts."""
        return cost(net, accumulators=("csa",))

    def loss(self, net: QuantizedNet, half: int) -> tuple[float, float, float]:
        """Accuracy, accuracy lost against the float network on the same samples, and what it is at most (95 %)."""
        x, y = self.halves[half]
        hits = net.decode(net.integers(net.encode(x, clip=True))).argmax(1) == y
        change = self.float_hits[half].double() - hits.double()
        lost = float(change.mean())
        return float(hits.double().mean()), lost, lost + _QUANTILE * float(change.std()) / math.sqrt(len(change))


def _searched(found: Advised, judge: _Judge, start: CostReport, tries: int, watch: Callable[[Advice], None]) -> Advised:
    present = judge.make(_row(start, start, 1.0, found.base[2]))
    accuracy, lost, _ = judge.loss(present, 1)
    start = judge.price(present)  # the candidates' real shifts are compared with its real ones
    found = replace(found, base_bootstraps=start.bootstraps, base_accuracy=accuracy, base_lost=lost)
    rows = list(found.rows)
    passed: dict[int, QuantizedNet] = {}
    failed: list[int] = []
    dear: list[int] = []  # cheaper than the present settings by their weights alone, and not on real data
    judged = 0

    def settle(at: int, half: int, net: QuantizedNet, real: Advice, names: tuple[str, str]) -> bool:
        accuracy, lost, most = judge.loss(net, half)
        good = lost <= found.most_loss
        rows[at] = replace(real, accuracy=accuracy, lost=lost, lost_at_most=most, verdict=names[not good])
        watch(rows[at])
        if not good:
            failed.append(at)
        return good

    while True:
        best = min(passed, key=lambda i: _price(rows[i]), default=len(rows))
        known = {*passed, *failed, *dear}
        open_ = [
            i
            for i in range(min(passed, default=len(rows)))
            if i not in known and not any(_no_more(rows[i], rows[j]) for j in failed)
        ]
        if open_ and len(known) < tries:
            at = open_[len(open_) // 2]
            net = judge.make(rows[at])
            real = replace(
                _row(judge.price(net), start, rows[at].channels, rows[at].lookup_bits), widths=rows[at].widths
            )
            if real.bootstraps >= start.bootstraps:
                rows[at] = replace(real, verdict="no cheaper once quantised")
                dear.append(at)
            elif settle(at, 0, net, real, ("within the budget", "loses too much")):
                passed[at] = net
        elif best < len(rows):
            judged += 1
            if settle(best, 1, passed[best], rows[best], ("chosen", "loses too much on the second half")):
                break
            del passed[best]  # those that cost more are open again
        else:
            break
    for i, row in enumerate(rows):
        if row.verdict == "not measured" and i not in open_:
            rows[i] = replace(row, verdict="ruled out")
    found = replace(found, rows=tuple(rows), judged=judged, unmeasured=len(open_))
    if best < len(rows):
        others = f"judged on {len(judge.halves[1][0])} other samples"
        reason = f"the cheapest of {len(known)} that were measured, {others}"
        return replace(found, best=rows[best], reason=reason)
    reason = f"nothing cheaper within the budget: {len(known)} of {len(rows)} candidates measured"
    losses = [row.lost for row in rows if row.lost is not None]
    if losses:
        reason += f", the best of them loses {100 * min(losses):.1f} points"
    if judged:
        reason += f"; {judged} passed on one half of the held-back data and lost too much on the other"
    return replace(found, reason=reason)


def _priced(graph: FloatGraph, bits: int, act_bits: int, lookup_bits: int) -> CostReport:
    return cost(graph, bits=bits, act_bits=act_bits, lookup_bits=lookup_bits, accumulators=("csa",))


def _row(report: CostReport, start: CostReport, channels: float, lookup_bits: int) -> Advice:
    return Advice(
        bits=report.bits,
        act_bits=report.act_bits,
        lookup_bits=lookup_bits,
        channels=channels,
        bootstraps=report.bootstraps,
        factor=report.bootstraps / start.bootstraps if start.bootstraps else 1.0,
        gates=report.gates("csa"),
        seconds=report.lookup_seconds,
        widest_lookup=max((layer.lookup_bits or 0 for layer in report.layers), default=0),
    )


def _price(row: Advice) -> tuple[int, float, int]:
    return (row.bootstraps, row.seconds or 0.0, row.gates)


def _no_more(row: Advice, other: Advice) -> bool:
    """Whether ``row`` has no more of anything than ``other``."""
    pairs = ((row.bits, other.bits), (row.act_bits, other.act_bits), (row.lookup_bits, other.lookup_bits))
    return row.channels <= other.channels and all(a <= b for a, b in pairs)
