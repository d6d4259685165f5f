"""What a configuration loses, sample by sample, and whether its positions are better chosen than at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from layerscope.methods.focus.aoi import pool_cells, select
from layerscope.methods.focus.places import Place
from layerscope.methods.focus.records import Candidate, FocusConfig, MapScore, Outcome
from layerscope.methods.focus.samples import Metric, Samples, logits, run, scorer, scores, split

#: One-sided 95 % of a normal distribution.
Z = 1.64


@dataclass(frozen=True, eq=False)
class Half:
    """Samples, what counts as right, and the dense network's score of each."""

    samples: Samples
    labels: Tensor
    dense: Tensor


class Scorer:
    """The metric on both halves of the calibration set.

    Args:
        model: the dense network.
        samples: the whole calibration set; split here.
        metric: see :func:`layerscope.methods.focus.search.focus`.
        seed: decides the split.
        batch: images at a time.
    """

    def __init__(
        self, model: Callable[[Tensor], Any], samples: Samples, metric: Metric | str | None, seed: int, batch: int
    ) -> None:
        self.name, self.metric = scorer(metric, samples)
        self.batch = batch
        names = ("select", "confirm")
        self.halves = {n: self._half(model, s) for n, s in zip(names, split(samples, seed), strict=True)}

    def _half(self, model: Callable[[Tensor], Any], samples: Samples) -> Half:
        outputs = run(model, samples.batches(self.batch))
        if self.name == "agreement":
            labels = torch.cat([logits(o).argmax(1) for o in outputs])
        else:
            assert samples.y is not None
            labels = samples.y
        return Half(samples, labels, scores(outputs, labels, self.batch, self.metric))

    def lost(self, config: FocusConfig, place: Place, half: str, maps: Tensor | None) -> Tensor:
        """Points that each sample of a half loses against dense, float64 [N].

        ``maps`` are known relevance maps of that half [N, H, W]; None computes them as a focused model would.
        """
        runner, size, chosen = place.runners[config.fill], self.batch, self.halves[half]
        parts = []
        with torch.no_grad():
            for i, (x, labels, dense) in enumerate(
                zip(
                    chosen.samples.batches(size),
                    torch.split(chosen.labels, size),
                    torch.split(chosen.dense, size),
                    strict=True,
                )
            ):
                value = runner.stem(x.contiguous())
                if maps is None:
                    relevance = place.relevance[config.relevance](*runner.maps(value), runner.backend)
                else:
                    relevance = maps[i * size : i * size + len(x)]
                mask = select(relevance, config.threshold, grid=config.grid, shape=config.shape, halo=config.halo)
                # an empty or full set runs densely, so nothing changes for that image
                here = (mask.flatten(1).any(1) & ~mask.flatten(1).all(1)).nonzero()[:, 0]
                lost = torch.zeros(len(x), dtype=torch.float64)
                if len(here):
                    output = runner.tail(runner.part(value, here, x), mask[here].contiguous())
                    lost[here] = dense[here] - self.metric(output, labels[here]).reshape(-1).double()
                parts.append(lost)
        return 100 * torch.cat(parts)

    def drop(self, config: FocusConfig, place: Place, half: str, maps: Tensor | None) -> tuple[float, float]:
        """Mean of :meth:`lost`, and its standard error."""
        return mean_and_error(self.lost(config, place, half, maps), self.halves[half].samples.group)

    def score(self, candidate: Candidate, place: Place, budget: float) -> Candidate:
        """The candidate with its loss on the select half."""
        drop, error = self.drop(candidate.config, place, "select", place.maps[candidate.config.relevance])
        outcome: Outcome = "passed" if drop <= budget else "over budget"
        return replace(candidate, select_drop=drop, select_bound=drop + Z * error, outcome=outcome)

    def with_chance(self, candidate: Candidate, place: Place) -> Candidate:
        """The candidate with the loss of random positions beside its own."""
        drop, _ = self.drop(_at_random(candidate, place), place, "select", place.maps["random"])
        return replace(candidate, chance_drop=drop)

    def against_chance(self, candidate: Candidate, place: Place) -> MapScore:
        """Whether the candidate's map chooses better than at random, from the paired differences of the select half."""
        config = candidate.config
        own = self.lost(config, place, "select", place.maps[config.relevance])
        random = self.lost(_at_random(candidate, place), place, "select", place.maps["random"])
        margin, error = mean_and_error(random - own, self.halves["select"].samples.group)
        return MapScore(config, candidate.active_share, float(own.mean()), float(random.mean()), margin, Z * error)


def _at_random(candidate: Candidate, place: Place) -> FocusConfig:
    """The same active share, grid and fill, at positions that have nothing to do with the image."""
    config = candidate.config
    cells = pool_cells(place.maps["random"][:1], config.grid).reshape(-1).double()
    threshold = float(cells.quantile(1 - min(1.0, candidate.active_share)))
    return replace(config, relevance="random", threshold=threshold, shape="cells", halo=0)


def mean_and_error(values: Tensor, group: Tensor | None) -> tuple[float, float]:
    """Mean of ``values`` [N] and its standard error; infinite from a single sample or group.

    Samples of one group (``group`` [N]: several views of one object, frames of one film) are not independent: the error
    is then that of whole groups, the linearized one for a ratio (Cochran, Sampling Techniques, 1977, chapters 6 and 9).
    """
    mean = values.mean()
    sums = values - mean
    if group is not None:
        index = torch.unique(group.to(values.device), return_inverse=True)[1]
        sums = sums.new_zeros(int(index.max()) + 1).index_add_(0, index, sums)
    n = len(sums)
    error = (sums.square().sum() * n / (n - 1)).sqrt() / len(values) if n > 1 else mean.new_tensor(float("inf"))
    return float(mean), float(error)
