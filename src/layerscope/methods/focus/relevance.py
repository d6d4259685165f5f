"""How much a position may matter, from its features at the cut: one number per position.

Every map here is the same cheap form, sum_c (a_c f_c^2 + b_c f_c) + d, with different coefficients:

- ``brightness``: b = 1, the channel sum of arXiv 2310.07782. Needs features that are not negative.
- ``norm``: a = 1, the squared length of the feature vector; works anywhere.
- ``novelty``: squared distance to the calibrated mean feature, each channel in units of its spread. What is close to
  the mean is what a mean fill replaces at the least loss.
- ``evidence``: b fitted by ridge regression to |gradient x activation| of the top output on the calibration set: a
  linear guess of where a class-activation map would light up, at the price of one dot product.
- ``random``: the same arbitrary order of cells for every image; the chance level that the others must beat.

Novelty, evidence and the common form are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from layerscope.errors import did_you_mean
from layerscope.methods.focus.backend import Backend
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.graph import Traced
from layerscope.methods.focus.rows_torch import TorchBackend

#: Positions that novelty and evidence are fitted on: far more than coefficients, and little memory.
FIT_ROWS = 100_000
NAMES = ("brightness", "norm", "novelty", "evidence", "random")


@dataclass(frozen=True, eq=False)
class Relevance:
    """Coefficients of one map; ``quadratic`` and ``linear`` are [C]."""

    name: str
    quadratic: Tensor | None
    linear: Tensor | None
    constant: float = 0.0

    def __call__(self, rows: Tensor, grid: tuple[int, int, int], backend: Backend | None = None) -> Tensor:
        """The map [N, H, W] of features [N * H * W, C], by the kernels of ``backend`` or in plain torch."""
        if self.name == "random":
            generator = torch.Generator().manual_seed(1)
            return torch.rand(grid[1:], generator=generator).expand(grid)
        chosen = backend or TorchBackend()
        total = chosen.relevance(rows, self.quadratic, self.linear, self.constant)
        return total.view(grid)


def make_relevance(
    name: str, channels: int, features: Tensor | None = None, evidence: Tensor | None = None
) -> Relevance:
    """The map of this name.

    Args:
        name: one of ``NAMES``.
        channels: C at the cut.
        features: calibration features [M, C]; needed by ``novelty`` and ``evidence``.
        evidence: |gradient x activation| [M] at the same positions; needed by ``evidence``.

    Raises:
        FocusError: unknown name, or what it needs is missing.
    """
    if name not in NAMES:
        raise FocusError(f"relevance: unknown {name!r}: {did_you_mean(name, NAMES)}")
    if name == "brightness":
        return Relevance(name, None, torch.ones(channels))
    if name == "norm":
        return Relevance(name, torch.ones(channels), None)
    if name == "random":
        return Relevance(name, None, None)
    if features is None or (name == "evidence" and evidence is None):
        raise FocusError(f"relevance: {name!r} is fitted to calibration features; give calibration batches")
    mean = features.mean(0)
    if name == "novelty":
        weight = 1.0 / (features.var(0) + 1e-6)
        return Relevance(name, weight, -2 * mean * weight, float((mean.square() * weight).sum()))
    assert evidence is not None
    centred = (features - mean).double()
    gram = centred.t() @ centred
    ridge = 1e-3 * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(channels, dtype=torch.float64)
    target = evidence.double() - evidence.double().mean()
    return Relevance(name, None, torch.linalg.solve(gram + ridge, centred.t() @ target).float())


def fitting_set(traced: Traced, cut: fx.Node, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features and evidence at up to ``FIT_ROWS`` positions of the calibration images, picked evenly at random."""
    each, features, evidence = max(1, FIT_ROWS // max(1, len(batches))), [], []
    generator = torch.Generator().manual_seed(0)
    for x in batches:
        rows, seen = evidence_of(traced, cut, x)
        picked = torch.randperm(len(seen), generator=generator)[:each]
        features.append(rows[picked])
        evidence.append(seen[picked])
    return torch.cat(features), torch.cat(evidence)


def evidence_of(traced: Traced, cut: fx.Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features at the cut as rows [M, C], and |sum_c gradient_c * f_c| [M] of each image's top output.

    For an output that is no [N, classes] matrix the squared length of the output takes the place of the top logit.
    """
    with torch.enable_grad():
        runner = _FromCut(traced.module, cut)
        output = runner.run(x)
        first = next(v for v in _tensors(output))
        score = first.amax(1).sum() if first.ndim == 2 else first.square().sum()
        (gradient,) = torch.autograd.grad(score, runner.leaf)
    features = runner.leaf.detach()
    seen = (gradient * features).sum(1).abs()
    return features.movedim(1, -1).reshape(-1, features.shape[1]), seen.reshape(-1)


class _FromCut(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, cut: fx.Node) -> None:
        super().__init__(module)
        self._cut = cut
        self.leaf = torch.empty(0)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n is self._cut:
            assert isinstance(value, Tensor)
            self.leaf = value.detach().clone().requires_grad_()
            return self.leaf * 1.0  # not the leaf itself: a later in-place operation may write over it
        return value


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    return []
