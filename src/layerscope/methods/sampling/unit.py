"""What all sampling layers share: the law, the five forward modes, and the checks."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from layerscope.errors import did_you_mean
from layerscope.methods.sampling import functional as S
from layerscope.methods.sampling.errors import SamplingError, SamplingWarning
from layerscope.methods.sampling.functional import MODES, Mode
from layerscope.methods.sampling.noises import Noise
from layerscope.methods.sampling.noises import noise as read_noise

Variance = Literal["norm", "border", "exact"]
VARIANCES: tuple[Variance, ...] = ("norm", "border", "exact")
T = TypeVar("T", bound=str)

#: Below it, n p (1 - p) is too small for the sum of n Bernoulli synapses to be normal.
NORMAL_ENOUGH = 3.0
#: A P at which a unit is certain in every precision.
_SURE = 9.0
#: Inputs looked at in a call that is not the first.
_GLANCE = 4096


class SamplingLayer(nn.Module, ABC):
    """Base of the sampling layers: the law, the five forward modes and the checks.

    A unit outputs z in {-1, +1} with P(z = +1) = (1 + erf(P)) / 2 and, for inputs of magnitude 1,

        P_i = beta_i (w_i . z) / |w_i|_2 + c_i.

    The row w_i gives a direction only: multiplying it by any positive number changes nothing. The noise is on in
    evaluation mode as well; :func:`layerscope.methods.sampling.deterministic` turns it off, and nothing else does.

    Modes: ``marginal`` draws z from P. ``connection`` draws the noise of every connection and takes the sign of the
    pre-activation: the physical model, for verification. ``unit`` draws one noise per input, shared by all outputs,
    which are then correlated. ``sign`` is z = sign(P). ``mean`` passes erf(P) on, for evaluation only.

    Variance: what Var(u) is divided by. ``norm`` takes |w|^2: right for inputs of magnitude 1. ``border`` leaves out
    the taps that hang over zero padding: right for inputs of magnitude 1. ``exact`` takes sum_j w_j^2 z_j^2, right for
    any input, at the cost of a second product.

    Source: arXiv 1910.12316. We let c itself be the parameter (the paper has a bias b inside u, c = b / (kappa |w|)),
    so that the invariance to the scale of w is exact.
    """

    weight: nn.Parameter
    beta: nn.Parameter
    c: nn.Parameter | None
    mode: Mode
    generator: torch.Generator | None
    centre: Tensor | None
    """Mean input per channel, [I], that the bias is counted from; only inside :func:`centred`."""
    _unit_shape: tuple[int, ...] = (-1,)

    def _set_up(self, fan_in: int, bias: bool, noise: str | Noise, mode: str, variance: str) -> None:
        self.noise = read_noise(noise)
        self.mode = _one_of(mode, MODES, "mode")
        self.variance: Variance = _one_of(variance, VARIANCES, "variance")
        self.generator = None
        self.copies = 1
        """Samples drawn for each input row in one pass; more than 1 only inside :func:`folded`."""
        self.register_buffer("centre", None)
        self._is_warned, self._calls = False, 0
        if self.noise.normality(fan_in) < NORMAL_ENOUGH:
            warnings.warn(
                f"{type(self).__name__}: {fan_in} inputs with {self.noise.name} are too few for a normal sum "
                f"(n p (1 - p) = {self.noise.normality(fan_in):.2g}, at least {NORMAL_ENOUGH:g} is needed): a device "
                "would not follow the stated law; use p nearer to 0.5, more inputs, or gaussian noise",
                SamplingWarning,
                stacklevel=4,
            )
        if not bias:
            self.c = None

    def reset_parameters(self) -> None:
        """Directions from torch's default for linear layers; magnitude 1, bias 0."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.ones_(self.beta)
        if self.c is not None:
            nn.init.zeros_(self.c)

    # what the shape of a layer decides

    @abstractmethod
    def _product(self, z: Tensor, weight: Tensor) -> Tensor:
        """w.z of every unit, in the shape of the output."""

    def _by_norm(self, z: Tensor) -> Tensor:
        """P with variance ``norm``, one magnitude per unit, in float32 or wider."""
        return S.scaled_by_norm(self._product(z, self.weight), self.weight, self.beta, self.bias(), self._unit_shape)

    def _per_unit(self, value: Tensor) -> Tensor:
        """[O] (or [O, H', W'], one value per location) shaped to broadcast against the output."""
        return value.view(self._unit_shape) if value.ndim == 1 else value

    @abstractmethod
    def mean_input(self, z: Tensor) -> Tensor:
        """Mean of the inputs over everything but their channels, [I]."""

    @abstractmethod
    def _row_times(self, channels: Tensor) -> Tensor:
        """w_i . z of an input that has these values [I] in its channels, everywhere; [O]."""

    @abstractmethod
    def _connections(self, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and weights of every connection, broadcasting to [N, positions, O, I]."""

    @abstractmethod
    def _from_connections(self, u: Tensor, p: Tensor) -> Tensor:
        """[N, positions, O] in the shape of P."""

    @abstractmethod
    def _fits(self, z: Tensor) -> str | None:
        """What shape was expected, if it is not this one."""

    # the law

    def norm(self) -> Tensor:
        """|w_i|_2 of every unit, [O], in float32 or wider."""
        w = self.weight.float() if S.is_narrow(self.weight.dtype) else self.weight
        length: Tensor = torch.linalg.vector_norm(w.flatten(1), dim=1)
        return length

    def bias(self) -> Tensor | None:
        """The c of the law; None without one. Inside :func:`centred` the parameter is c + beta v.centre."""
        if self.c is None or self.centre is None:
            return self.c
        return self.c - self.pull(self.centre.clone())  # it goes on changing before the backward pass

    def pull(self, channels: Tensor) -> Tensor:
        """What beta v.z is for an input that has these values [I] in its channels, everywhere; [O]."""
        return self.beta * self._row_times(channels) * S.inverse_norm(self.weight)

    def effective_fan_in(self) -> Tensor:
        """(sum w^2)^2 / sum w^4 of every unit, [O]: how many equal connections its row is worth.

        In [1, fan-in]; 0 for a row of zeros.
        """
        w = S.direction(self.weight.detach().double()).flatten(1).square()
        return (w.sum(1).square() / w.square().sum(1)).masked_fill(w.sum(1) == 0, 0.0)

    def pre_activation(self, z: Tensor) -> Tensor:
        """P, the argument of erf: what the unit's probability is made of. Same shape as the output.

        In float16 and bfloat16, also by autocast, the product is taken with unit rows (large rows would overflow, small
        ones vanish) and everything after it in float32.

        Raises:
            SamplingError: integer input, or a shape that does not fit.
        """
        self._check(z)
        narrow = S.is_narrow(z.dtype) or torch.is_autocast_enabled(z.device.type)
        if self.variance == "norm" and self.beta.ndim == 1 and not narrow:
            return self._by_norm(z)
        v = S.direction(self.weight)
        u = self._product(z, v.to(self.weight.dtype)).to(v.dtype)
        with torch.autocast(z.device.type, enabled=False):
            gain, c = self._per_unit(self.beta.to(v.dtype)), self.bias()
            shift = None if c is None else self._per_unit(c)
            if self.variance != "norm":
                gain, shift = self._for_the_spread(z, v, gain, shift)
            p = u * gain
            return p if shift is None else p.add_(shift)  # in this order P keeps the memory format of u

    def _for_the_spread(self, z: Tensor, v: Tensor, beta: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gain beta / s and shift c / s, with s^2 = sum_j v_j^2 z_j^2 for unit rows v.

        Where s is 0 the unit sees nothing and has no noise: it follows the sign of its bias.
        """
        seen = torch.ones_like(z[:1], dtype=v.dtype) if self.variance == "border" else z.to(v.dtype).square()
        square = self._product(seen, v.square())
        empty_rows = self._per_unit((v.detach().flatten(1) == 0).all(1))
        square = square.masked_fill(empty_rows, 1.0)  # as with variance "norm": they fire by their bias
        blind = square == 0
        inverse = square.masked_fill(blind, 1.0).rsqrt()
        if c is None:
            return beta * inverse, blind.to(v.dtype) * _SURE
        sign = ((c >= 0).to(v.dtype) * 2 - 1) * _SURE
        return beta * inverse, torch.where(blind, sign, c.to(v.dtype) * inverse)

    def forward(self, z: Tensor) -> Tensor:
        """Inputs of -1 and +1 (anything with ``variance="exact"``) -> samples of -1 and +1."""
        if z.ndim == len(self._unit_shape):  # one sample without a batch axis
            return self.forward(z[None])[0]
        p = self.pre_activation(z)
        if self.copies > 1:
            p = p.expand(self.copies, *p.shape).flatten(0, 1)
            z = z.expand(self.copies, *z.shape).flatten(0, 1) if self.mode in ("connection", "unit") else z
        return self._decided(z, p).to(z.dtype)

    def _decided(self, z: Tensor, p: Tensor) -> Tensor:
        if self.mode == "marginal":
            return S.sample(p, self.generator)
        if self.mode == "sign":
            return S.hard_sign(p)
        if self.mode == "mean":
            return S.mean(p)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            z, weight = z.to(p.dtype), self.weight.to(p.dtype)
            u = self._connection_noise(z, weight, p) if self.mode == "connection" else self._unit_noise(z, weight)
        return S.decide(u, p)

    def _offset_and_bias(self) -> tuple[Tensor, Tensor]:
        """a_i and b_i of the physical model, [O] (a as [O, H, W] with one magnitude per location)."""
        a = cast("Tensor", self.noise.offset(self.beta))
        bias = self.bias()
        c = torch.zeros_like(self.norm()) if bias is None else bias
        return a, c * self.noise.kappa * self.norm().to(c.dtype)

    def _connection_noise(self, z: Tensor, weight: Tensor, p: Tensor) -> Tensor:
        """The pre-activation u = sum_j (xi_ij + a_i) w_ij z_j + b_i, fresh noise for every connection."""
        a, b = map(self._per_unit, self._offset_and_bias())
        rows = []
        for i in range(len(z)):
            terms = torch.mul(*self._connections(z[i : i + 1], weight))
            xi = self.noise.draw(terms.shape, self.generator, z.device)
            noisy = self._from_connections((xi.to(z.dtype) * terms).sum(-1), p[i : i + 1])
            plain = self._from_connections(terms.sum(-1), p[i : i + 1])
            rows.append(noisy + a * plain + b)
        return torch.cat(rows) if rows else torch.zeros_like(p)

    def _unit_noise(self, z: Tensor, weight: Tensor) -> Tensor:
        """The same with one noise per input, shared by all outputs and positions that read it."""
        a, b = map(self._per_unit, self._offset_and_bias())
        xi = self.noise.draw(z.shape, self.generator, z.device).to(z.dtype)
        return self._product(z * xi, weight) + a * self._product(z, weight) + b

    # checks

    def _check(self, z: Tensor) -> None:
        if not z.is_floating_point():
            raise SamplingError(f"{type(self).__name__} needs floating-point inputs of -1 and +1, got {z.dtype}")
        if expected := self._fits(z):
            raise SamplingError(f"{type(self).__name__} needs inputs of shape {expected}, got {tuple(z.shape)}")
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return  # values cannot be looked at here
        self._calls += 1
        first = self._calls == 1
        # a look at the values costs time, and on a GPU a wait: the 2nd, 4th, 8th ... call is looked at, in part
        if not first and (self._is_warned or self._calls & (self._calls - 1) or z.device.type != "cpu"):
            return
        values = z.detach() if first else z.detach().flatten()[:: max(1, z.numel() // _GLANCE)]
        if first:
            self._check_weights()
        # means are not binary, and are not meant to be
        if self._is_warned:
            return
        if self.variance != "exact" and self.mode != "mean" and not bool((values.abs() == 1).all()):
            self._is_warned = True
            warnings.warn(
                f"{type(self).__name__} with variance={self.variance!r} got inputs that are not -1 or +1 "
                f"(such as {_example(values):.9g}): the variance of the noise then depends on the input, and the "
                "stated law does not hold; put  Binarize()  before it, or use  variance='exact'",
                SamplingWarning,
                stacklevel=5,
            )

    def _check_weights(self) -> None:
        empty = torch.nonzero(self.norm().detach() == 0).flatten()
        if len(empty):
            warnings.warn(
                f"{type(self).__name__}: unit(s) {empty[:5].tolist()} have a weight row of zeros, which has no "
                "direction: they fire by their bias alone and are not trained; call reset_parameters()",
                SamplingWarning,
                stacklevel=6,
            )

    def train(self, mode: bool = True) -> Self:
        """As of every module; the next inputs are looked at again."""
        if mode != self.training:
            self._calls = 0
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Without the generator: it belongs to a context, and cannot be pickled."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # torch's own
        return {**state, "generator": None, "copies": 1}


def _example(z: Tensor) -> float:
    return float(z.flatten()[int((z.abs() != 1).flatten().to(torch.uint8).argmax())])


def _one_of(value: str, known: tuple[T, ...], what: str) -> T:
    for name in known:
        if name == value:
            return name
    raise SamplingError(f"no {what} {value!r}; {did_you_mean(value, known)}")
