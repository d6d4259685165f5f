"""The mixture transform as fused Triton kernels: the same numbers as ``mixture_kernel`` with fewer passes over memory.

Forward reads x twice and writes y once, as batch norm does: (1) posteriors and weighted sums, (2) y. Backward reads x
and dL/dy twice and writes dx. Between the passes, one small kernel turns sums into the (K, C) tables that the next pass
multiplies with, and moves the running statistics; nothing waits for the host. Numbers are float32 whatever the dtype
of x; x - centre is what gets squared, so that an offset of x costs no digits. Sums go to one slab per program and are
added in a fixed order: results do not change from run to run.

Here are the launches; the kernels are in ``mixture_triton_forward`` and ``mixture_triton_backward``. Imported only
where Triton is (see ``mixture_fused``).
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from layerscope.norms import mixture_triton_backward as backward
from layerscope.norms import mixture_triton_forward as forward
from layerscope.norms.mixture_math import SHARE_FLOOR, VAR_FLOOR, Mixture

#: Numbers of x in one tile.
TILE = 4096
#: Most channels in one tile; more are taken in turns.
CHANNELS = 128
#: Programs that share the tiles of a summing pass, per multiprocessor.
PROGRAMS = 4


class Plan:
    """How a [B, C, S] view is cut into tiles: BC channels by BM positions of one b."""

    def __init__(self, x: Tensor, k: int) -> None:
        b, self.C, self.S = x.shape
        self.strides = x.stride()
        self.K, self.KP = k, triton.next_power_of_2(k)
        self.BC = min(CHANNELS, max(16, triton.next_power_of_2(self.C)))
        self.BM = min(128, max(16, TILE // self.BC), max(16, triton.next_power_of_2(self.S)))
        self.row_tiles = triton.cdiv(self.S, self.BM)
        self.tiles = b * self.row_tiles
        self.chunks = triton.cdiv(self.C, self.BC)
        self.programs = min(self.tiles, PROGRAMS * _multiprocessors(x.device))
        #: channels a program takes at once where it holds all components
        self.wide = {"K": k, "KP": self.KP, "BC": min(1024, triton.next_power_of_2(self.C))}

    @property
    def geometry(self) -> tuple[int, ...]:
        """Row tiles, channels, positions, and strides."""
        return (self.row_tiles, self.C, self.S, *self.strides)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


TINY = float(torch.finfo(torch.float32).tiny)


def prepare(
    mixture: Mixture, plan: Plan, centre: Tensor | None, temperature: float, eps: float, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The table of log posteriors (2 K C + K numbers) and the centre, (C,): the mixture's own unless given.

    ``before``, K + 2 K C numbers, receives a copy of the mixture.
    """
    own = centre is None
    like = mixture.mean
    centre = torch.empty(plan.C, device=like.device) if centre is None else centre
    table = torch.empty(2 * plan.K * plan.C + plan.K, device=like.device)
    forward.prepare[(1,)](
        *mixture, centre, table, table if before is None else before,
        temperature, eps, VAR_FLOOR, SHARE_FLOOR, plan.C, **plan.wide, OWN=own, SAVE=before is not None,
    )  # fmt: skip
    return table, centre


def collect(
    x: Tensor, plan: Plan, centre: Tensor, table: Tensor, temperature: float, em: bool
) -> tuple[Tensor, Tensor]:
    """Posteriors [B, K, S] and sums [1 or 2, K, 2C + 1] over z, z^2 and 1."""
    tau = torch.empty(x.shape[0], plan.K, plan.S, device=x.device)
    partial = torch.empty(plan.programs, 2 if em else 1, plan.K, 2 * plan.C + 1, device=x.device)
    forward.collect[(plan.programs,)](
        x, centre, table, tau, partial, plan.tiles, plan.row_tiles, temperature, *plan.geometry[1:],
        K=plan.K, KP=plan.KP, BC=plan.BC, BM=plan.BM, EM=em,
    )  # fmt: skip
    return tau, partial.sum(0)


def finish(
    sums: Tensor,
    plan: Plan,
    centre: Tensor,
    affine: tuple[Tensor, Tensor] | None,
    eps: float,
    unit: bool,
    track: tuple[Mixture, Mixture, Tensor, float] | None,
) -> tuple[Tensor, ...]:
    """Mean, variance, scale and offset, each [K, C], mass and alpha, (K,), and whether all is finite, int32 (1,).

    ``track`` is (mixture, running moments, count of batches, momentum): moved in place if all is finite.
    """
    like = sums.new_empty
    mean, var, scale, offset = like(4, plan.K, plan.C)
    mass, alpha = like(2, plan.K)
    finite = torch.empty(1, dtype=torch.int32, device=sums.device)
    weight, bias = (centre, centre) if affine is None else affine
    if track is None:  # any pointers will do
        unused = Mixture(centre, centre, centre)
        track = (unused, unused, finite, 0.0)
        update = False
    else:
        update = True
    mixture, running, tracked, momentum = track
    forward.finish[(1,)](
        sums[0], sums[-1], centre, weight, bias, mean, var, mass, alpha, scale, offset, finite,
        *mixture, *running, tracked, float(momentum), eps, SHARE_FLOOR if plan.K > 1 else 0.0, plan.C,
        **plan.wide, AFFINE=affine is not None, UNIT=unit, UPDATE=update, TINY=TINY,
    )  # fmt: skip
    return mean, var, scale, offset, mass, alpha, finite


def normalize(x: Tensor, y: Tensor, plan: Plan, tau: Tensor, centre: Tensor, scale: Tensor, offset: Tensor) -> None:
    """Y = (x - centre) * (tau scale) + tau offset, written into ``y`` of the same strides."""
    forward.normalize[(plan.tiles, plan.chunks)](
        x, y, tau, centre, scale, offset, *plan.geometry, K=plan.K, BC=plan.BC, BM=plan.BM
    )


def evaluate(x: Tensor, y: Tensor, plan: Plan, centre: Tensor, table: Tensor, scale: Tensor, offset: Tensor) -> None:
    """The same with posteriors from ``table``, in one pass."""
    forward.evaluate[(plan.tiles,)](
        x, y, centre, table, scale, offset, *plan.geometry, K=plan.K, KP=plan.KP, BC=plan.BC, BM=plan.BM
    )


def collect_back(x: Tensor, g: Tensor, plan: Plan, tau: Tensor, centre: Tensor) -> Tensor:
    """Q and P, [2, K, C]."""
    partial = torch.empty(plan.programs, 2, plan.K, plan.C, device=x.device)
    backward.collect_back[(plan.programs, plan.chunks)](
        x, g, tau, centre, partial, plan.tiles, *plan.geometry, K=plan.K, KP=plan.KP, BC=plan.BC, BM=plan.BM
    )
    return partial.sum(0)


def finish_back(
    local: Tensor, total: Tensor, plan: Plan, saved: tuple[Tensor, ...], weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight and bias, (C,), and the tables own, constant and slope of dx, [K, C]."""
    mean, var, mass, alpha, centre = saved
    own, constant, slope = local.new_empty(3, plan.K, plan.C)
    grads = local.new_empty(2, plan.C)
    backward.finish_back[(plan.chunks,)](
        local, total, mean, var, mass, alpha, centre, centre if weight is None else weight, grads[0], grads[1],
        own, constant, slope, eps, plan.C, K=plan.K, KP=plan.KP, BC=plan.BC, AFFINE=weight is not None, TINY=TINY,
    )  # fmt: skip
    return grads[0], grads[1], own, constant, slope


def gradient(
    x: Tensor, g: Tensor, dx: Tensor, plan: Plan, tau: Tensor, centre: Tensor, tables: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write dL/dx into ``dx``; x, g and dx share their strides."""
    backward.gradient[(plan.tiles, plan.chunks)](
        x, g, dx, tau, centre, *tables, *plan.geometry, K=plan.K, BC=plan.BC, BM=plan.BM
    )
