"""Predict with many passes: mean softmax, adaptive stopping with a bound, the first layer computed once."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerscope.methods.sampling.context import folded, sampling_layers, seeded
from layerscope.methods.sampling.errors import SamplingError
from layerscope.methods.sampling.uncertainty import predictive_entropy


@dataclass(frozen=True, eq=False)
class Prediction:
    """What many passes say of N examples and K classes; float64 tensors on the inputs' device."""

    probs: Tensor
    """[N, K] mean of the softmax outputs (not softmax of the mean output)."""
    entropy: Tensor
    """[N] predictive entropy of ``probs``, nats."""
    mutual_information: Tensor
    """[N] entropy of the mean minus mean entropy: what the passes disagree on."""
    vote_share: Tensor
    """[N] share of passes that vote for the most frequent class."""
    variance: Tensor
    """[N, K] variance of the softmax outputs over the passes; the error of ``probs`` is sqrt(variance / samples)."""
    samples: Tensor
    """int64 [N] passes spent on each example."""
    settled: Tensor
    """bool [N] whether adaptive stopping reached its bound; all False where it was not asked for."""

    @property
    def classes(self) -> Tensor:
        """[N] most probable class."""
        return self.probs.argmax(-1)

    def accuracy(self, labels: Tensor) -> float:
        """Share of examples whose most probable class is the label."""
        return float((self.classes == labels).double().mean())


def predict(
    model: nn.Module,
    x: Tensor,
    samples: int = 100,
    *,
    confidence: float | None = None,
    chunk: int = 25,
    batch_size: int = 500,
    share_first: bool = True,
    seed: int | torch.Generator | None = None,
) -> Prediction:
    """Average the softmax of many stochastic passes.

    Samples are folded into the batch, and what comes before the first noise is computed once for all of them.

    With ``confidence`` an example is done as soon as its answer is settled: when the lead of its top class over the
    second exceeds 2 t with t = sqrt(log(2 K C / (1 - confidence)) / (2 n)), n passes spent and C looks in all. By
    Hoeffding's inequality, for all classes and looks together, the class returned for a settled example is with this
    confidence the one that infinitely many passes would return.

    Args:
        model: a network with sampling layers that returns logits [N, K]. Run in eval mode; the noise stays on.
        x: inputs [N, ...].
        samples: passes for each example, or the most an example gets.
        confidence: in (0, 1), to stop early; None spends all passes on every example.
        chunk: passes folded into one batch, and between two looks.
        batch_size: examples in one batch.
        share_first: compute the first layer's law once for all passes of a chunk. Needs a network in which nothing
            from before the first sampling layer meets something from behind it.
        seed: of the noise; None draws from the global generator.

    Raises:
        SamplingError: no sampling layer, logits of another shape, a confidence outside (0, 1), samples below 1, no
            example.
    """
    sizes = {"samples": samples, "chunk": chunk, "batch_size": batch_size}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise SamplingError(f"{name} must be a whole number of at least 1, got {size}")
    if not len(x):
        raise SamplingError("there is no example to predict")
    if confidence is not None and not 0 < confidence < 1:
        raise SamplingError(f"confidence must lie between 0 and 1, got {confidence}")
    sampling_layers(model)
    flags = [(m, m.training) for m in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if seed is not None:
            stack.enter_context(seeded(model, seed))
        model.eval()
        try:
            arguments = (samples, confidence, chunk, share_first)
            parts = [_predict(model, part, *arguments) for part in torch.split(x, batch_size)]
        finally:
            for module, flag in flags:
                module.training = flag
    return Prediction(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _predict(
    model: nn.Module,
    x: Tensor,
    samples: int,
    confidence: float | None,
    chunk: int,
    share_first: bool,
) -> tuple[Tensor, ...]:
    looks = math.ceil(samples / chunk)
    total: Tensor | None = None
    spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    settled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for look in range(looks):
        n = min(chunk, samples - look * chunk)
        open_ = torch.nonzero(~settled).flatten()
        if not len(open_):
            break
        p = _passes(model, x[open_] if len(open_) < len(x) else x, n, share_first)
        sums = torch.stack([p.sum(0), p.square().sum(0), torch.special.entr(p).sum(0), _votes(p)])
        if total is None:
            total = torch.zeros(4, len(x), p.shape[-1], dtype=torch.float64, device=p.device)
        total[:, open_] += sums
        spent[open_] += n
        if confidence is not None:
            top = (total[0, open_] / spent[open_, None]).topk(2).values
            classes = p.shape[-1]
            t = torch.sqrt(math.log(2 * classes * looks / (1 - confidence)) / (2 * spent[open_].double()))
            settled[open_] = top[:, 0] - top[:, 1] > 2 * t
    assert total is not None
    mean, square, entropy, votes = total / spent[:, None]
    whole = predictive_entropy(mean)
    information = (whole - entropy.sum(-1)).clamp_min(0)
    variance = (square - mean.square()).clamp_min(0)
    return mean, whole, information, votes.amax(-1), variance, spent, settled


def _votes(p: Tensor) -> Tensor:
    return nn.functional.one_hot(p.argmax(-1), p.shape[-1]).sum(0).double()


def _passes(model: nn.Module, x: Tensor, n: int, share_first: bool) -> Tensor:
    """Softmax of ``n`` passes, [n, N, K], float64."""
    if share_first:
        with folded(model, n):
            try:
                out = model(x)
            except RuntimeError as error:
                raise SamplingError(
                    f"the passes cannot share the first layer ({error}): something from before it meets something from "
                    "behind it; use share_first=False"
                ) from error
        out = _logits(out, n * len(x))
        return out.reshape(n, len(x), -1).double().softmax(-1)
    return torch.stack([_logits(model(x), len(x)).double().softmax(-1) for _ in range(n)])


def _logits(out: object, rows: int) -> Tensor:
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != rows or out.shape[1] < 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise SamplingError(f"predict needs a network that returns logits [N, K] with K of at least 2, got {shape}")
    return out
