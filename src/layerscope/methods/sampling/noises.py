"""The multiplicative noise of a synapse: its mean, its standard deviation, and how it is drawn.

A unit sums (xi_j + a) w_j z_j + b over its inputs, xi fresh for every connection, sample and pass. With mean m and
standard deviation d of xi, the offset a sets the magnitude beta = (m + a) / (sqrt(2) d) of the firing law

    P(z = +1) = (1 + erf(beta w.z / |w| + c)) / 2.

The law depends on beta alone, not on the noise: the noise only says which offset the hardware needs for a given beta.
Source: arXiv 1910.12316 (Gaussian and Bernoulli); any noise of finite variance gives the same law by the same argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from layerscope.errors import SpecError, did_you_mean
from layerscope.methods.sampling.errors import SamplingError
from layerscope.spec import parse_spec

Draw = Callable[[Sequence[int], torch.Generator | None, torch.device], Tensor]


@dataclass(frozen=True)
class Noise:
    """One noise family: any distribution of finite mean and variance.

    >>> noise = bernoulli(0.5)
    >>> noise.offset(1.0), noise.magnitude(noise.offset(1.0))
    (0.20710678118654757, 1.0)
    """

    name: str
    mean: float
    std: float
    draw: Draw = field(compare=False, repr=False)
    """(shape, generator, device) -> float32 tensor of independent draws."""
    gaussian: bool = False
    """Whether the law is exact at every fan-in; otherwise it holds by the central limit theorem."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise SamplingError(f"{self.name}: mean {self.mean} and std {self.std} must be finite, and std positive")

    @property
    def kappa(self) -> float:
        """sqrt(2) * std: the scale between offset and magnitude."""
        return math.sqrt(2) * self.std

    def offset(self, beta: float | Tensor) -> float | Tensor:
        """The offset a that gives the magnitude ``beta``: a = beta kappa - m."""
        return beta * self.kappa - self.mean

    def magnitude(self, a: float | Tensor) -> float | Tensor:
        """The magnitude that the offset ``a`` gives: beta = (m + a) / kappa."""
        return (a + self.mean) / self.kappa

    def normality(self, fan_in: float) -> float:
        """How normal the sum of ``fan_in`` equal terms is: fan_in * std^2 for Bernoulli noise, infinite for Gaussian.

        Below 3 the stated law is visibly wrong for Bernoulli noise (0.09 in probability at p = 0.1 and 16 inputs).
        """
        return math.inf if self.gaussian else fan_in * self.std**2


def gaussian(std: float = 1.0, mean: float = 1.0) -> Noise:
    """Gaussian noise N(mean, std^2); mean 1 as in the paper.

    Raises:
        SamplingError: std is not positive.
    """
    name = f"gaussian:std={std:.12g}" if mean == 1 else f"gaussian:std={std:.12g},mean={mean:.12g}"
    return Noise(name, mean, std, partial(_draw_gaussian, std, mean), gaussian=True)


def bernoulli(p: float = 0.5) -> Noise:
    """Noise that is 1 with probability p, else 0: a synapse that transmits or fails.

    Raises:
        SamplingError: p outside (0, 1); at 0 and 1 there is no noise to sample with.
    """
    if not 0 < p < 1:
        raise SamplingError(f"bernoulli noise needs 0 < p < 1, got p={p}: at 0 and 1 nothing is random")

    return Noise(f"bernoulli:p={p:.12g}", p, math.sqrt(p * (1 - p)), partial(_draw_bernoulli, p))


# at the top of the module, so that a layer can be pickled with its noise
def _draw_gaussian(
    std: float, mean: float, shape: Sequence[int], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=device) * std + mean


def _draw_bernoulli(p: float, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    return (torch.rand(tuple(shape), generator=generator, device=device) < p).float()


_FAMILIES: dict[str, Callable[..., Noise]] = {"gaussian": gaussian, "bernoulli": bernoulli}


def noise(spec: str | Noise) -> Noise:
    """A noise by name: ``bernoulli:p=0.5``, ``gaussian:std=1``; a :class:`Noise` of your own passes through.

    Raises:
        SpecError: an unknown name or parameter.
        SamplingError: a parameter out of range.
    """
    if isinstance(spec, Noise):
        return spec
    read = parse_spec(spec)
    if read.name not in _FAMILIES:
        raise SpecError(f"no noise {read.name!r}; {did_you_mean(read.name, _FAMILIES)}")
    known = {"gaussian": {"std", "mean"}, "bernoulli": {"p"}}[read.name]
    for key, value in read.params:
        if key not in known or isinstance(value, bool | str):
            raise SpecError(f"in {spec!r}: {read.name} takes {', '.join(sorted(known))} as numbers, not {key}={value}")
    return _FAMILIES[read.name](**read.kwargs)
