"""A network that computes only where it matters: :class:`FocusedModel`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.copying import duplicate
from layerscope.methods.focus.aoi import AoI, select
from layerscope.methods.focus.backends import make_backend
from layerscope.methods.focus.cost import CostTable, measure
from layerscope.methods.focus.errors import FocusError
from layerscope.methods.focus.fills import mean_fills
from layerscope.methods.focus.graph import Traced, check_input, trace
from layerscope.methods.focus.levels import Level
from layerscope.methods.focus.plan import Plan, make_plan, zero_fills
from layerscope.methods.focus.records import FocusConfig, FocusReport
from layerscope.methods.focus.relevance import Relevance, fitting_set, make_relevance
from layerscope.methods.focus.runner import Runner
from layerscope.plain import from_plain, to_plain
from layerscope.stored import UnreadableError, read_stored

#: A call goes dense above 1 + this times the dense time, and comes back below 1 - this: no flapping in between.
HYSTERESIS = 0.05


@dataclass(frozen=True, eq=False)
class Fitted:
    """What calibration batches are needed for, once it is known."""

    relevance: Relevance
    fills: dict[str, Tensor]
    """Fill [C] of each value after the cut, by the name of its node."""


class FocusedModel(nn.Module):
    """A pretrained network that runs densely up to a cut, chooses the positions that may matter, and from there on
    computes only those.

    Before the cut nothing changes. After it, each image has its own active set; an inactive position is never
    computed and counts as the fill wherever an active one reads it. Full sets, and sets that would cost more than the
    dense network, run densely and give the dense result to the bit.

    Args:
        model: the network, in eval mode. It is copied; the original is never touched.
        config: what chooses the set; None makes a dense model with the same interface.
        example: one input batch [N, C, H, W], for the shapes.
        calibration: batches [N, C, H, W], needed for a mean fill and for fitted relevance maps.
        fitted: the same from an earlier fit, in place of ``calibration``.
        backend: ``auto``, ``avx512``, ``avx2``, ``plain`` or ``torch``.
        on_empty: an image with no active position runs ``dense``, or goes on with nothing but ``fill``.
        route: whether full, empty and expensive sets run densely; off only for measuring and tests.
        report: the search's report, kept as ``.report``.

    Raises:
        FocusError, FocusTypeError: see :func:`layerscope.methods.focus.graph.trace`; unknown cut, fill or relevance.

    Source: semantics and kernel are ours; the idea of one inherited mask is arXiv 2310.07782.
    """

    def __init__(
        self,
        model: nn.Module,
        config: FocusConfig | None,
        *,
        example: Tensor,
        calibration: Iterable[Tensor] = (),
        fitted: Fitted | None = None,
        backend: str = "auto",
        on_empty: str = "dense",
        route: bool = True,
        report: FocusReport | None = None,
    ) -> None:
        super().__init__()
        if on_empty not in ("dense", "fill"):
            raise FocusError(f"on_empty: expected 'dense' or 'fill', got {on_empty!r}")
        self.config, self.report, self.on_empty, self.route = config, report, on_empty, route
        # what is no network, trace names below
        self.dense = duplicate(model, FocusError) if isinstance(model, nn.Module) else model
        self.last_aoi: list[Tensor] = []
        self.last_route: list[str] = []
        self.costs: CostTable | None = None
        self._backend_name = backend
        self._example_shape = tuple(example.shape)
        self._mostly_dense = False
        self._elsewhere: str | None = None
        self._warned: set[str] = set()
        self._buffer_names: list[str] = []
        self._runner: Runner | None = None
        self._relevance: Relevance | None = None
        if config is None:
            trace(self.dense, example)  # raises what a focused model would raise
        else:
            self._build(example, [b.float() for b in calibration], fitted)
        self.eval()
        self.register_load_state_dict_post_hook(_repack)  # type: ignore[no-untyped-call]  # torch's

    # building --------------------------------------------------------------------------------------------------------

    def _build(self, example: Tensor, calibration: Sequence[Tensor], fitted: Fitted | None) -> None:
        config = self.config
        assert config is not None
        _check_config(config)
        backend = make_backend(self._backend_name)
        traced = trace(self.dense, example)
        plan = make_plan(traced, traced.cut(config.cut), stem_on_rows=backend.stem_on_rows)
        if fitted is None:
            fitted = _fit(config, traced, plan, calibration)
        self._set_relevance(fitted.relevance)
        fills = {node: fitted.fills[node.name] for node in zero_fills(plan)}
        self._buffer_names = []
        for node, fill in fills.items():
            name = f"fill_{node.name}"
            self.register_buffer(name, fill.detach().clone())
            self._buffer_names.append(name)
        self.unsupported, self.notes = plan.unsupported, plan.notes
        self._runner = Runner(plan, backend, fills)

    def _set_relevance(self, relevance: Relevance) -> None:
        for name in ("quadratic", "linear"):
            value = getattr(relevance, name)
            self.register_buffer(f"relevance_{name}", None if value is None else value.detach().clone())
        self._relevance = relevance

    def _rebuild(self) -> None:
        """Bind the plan to the present parameters and buffers: after loading a state dict, copying or unpickling."""
        config = self.config
        if config is None:
            return
        backend = make_backend(self._backend_name)
        traced = trace(self.dense, torch.zeros(self._example_shape))
        plan = make_plan(traced, traced.cut(config.cut), stem_on_rows=backend.stem_on_rows)
        fills = {node: self.get_buffer(f"fill_{node.name}") for node in zero_fills(plan)}
        assert self._relevance is not None
        constant = self._relevance.constant
        self._relevance = Relevance(config.relevance, self.relevance_quadratic, self.relevance_linear, constant)
        self._runner = Runner(plan, backend, fills)

    relevance_quadratic: Tensor | None
    relevance_linear: Tensor | None

    def get_extra_state(self) -> dict[str, Any]:
        """The relevance map's constant: the one number that is neither a parameter nor a buffer."""
        return {"relevance_constant": 0.0 if self._relevance is None else self._relevance.constant}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See :meth:`get_extra_state`."""
        if self._relevance is not None:
            r = self._relevance
            self._relevance = Relevance(r.name, r.quadratic, r.linear, float(state["relevance_constant"]))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_runner"] = None  # holds addresses of packed weights
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self._rebuild()

    def save(self, path: str | Path) -> Path:
        """Write weights, fills and configuration to ``path``; read it with :meth:`load`."""
        config = None if self.config is None else to_plain(self.config)
        torch.save({"config": config, "shape": self._example_shape, "state": self.state_dict()}, path)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, *, backend: str = "auto") -> FocusedModel:
        """The focused model that :meth:`save` wrote, on a network of the same architecture as ``model``.

        Raises:
            FocusError: a file of another kind, or weights that do not fit ``model``.
        """
        try:
            saved = read_stored(path)
            config = None if saved["config"] is None else from_plain(FocusConfig, saved["config"])
            example = torch.zeros(saved["shape"])
        except (UnreadableError, LookupError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise FocusError(f"{path}: not a saved focused model ({type(error).__name__}: {error})") from None
        focused = cls(model, config, example=example, calibration=[example], backend=backend)
        try:
            focused.load_state_dict(saved["state"])
        except RuntimeError as error:
            raise FocusError(f"{path}: its weights do not fit this network: {str(error)[:300]}") from None
        return focused

    # running ---------------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """The backend in use: an instruction set, ``torch``, or ``dense`` for a model that is not focused."""
        return "dense" if self._runner is None else self._runner.backend.name

    def calibrate_cost(self, x: Tensor, *, repeats: int = 4) -> CostTable:
        """Measure the time tables by which each call decides between focused and dense; kept as ``.costs``."""
        if self._runner is None:
            raise FocusError("a model that was returned dense has no active sets to measure")
        self.costs = measure(self._runner, self.dense, x.contiguous(), repeats=repeats)
        return self.costs

    def forward(self, x: Tensor, aoi: AoI | Tensor | Sequence[Tensor] | None = None) -> Any:
        """The network's output.

        Args:
            x: [N, C, H, W].
            aoi: an area of interest from outside instead of the model's own choice, at the cut's grid or finer.

        Raises:
            FocusError: an input that requires grad while grad is enabled, wrong shapes, NaN features, or an attempt to
                compile or export.
        """
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            raise FocusError(
                "a FocusedModel cannot be compiled or exported: its shapes depend on the data; export .dense"
            )
        check_input(x)
        if self.training or self.dense.training:
            raise FocusError("a FocusedModel is for inference only and is in training mode; call .eval()")
        if torch.is_grad_enabled() and x.requires_grad:
            raise FocusError(
                "x requires grad: focusing is for inference only; call it under torch.no_grad() or use .dense"
            )
        if (why := self._cannot(x)) is not None:
            if aoi is not None:
                AoI.from_mask(aoi) if not isinstance(aoi, AoI) else aoi
            return self._dense(x, why)
        with torch.no_grad():
            return self._forward(x, aoi)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FocusedModel:
        """Moves or converts the network (``.to``, ``.double``), then packs the weights again if it can still focus."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        others = {
            f"the model is on {p.device.type}" if p.device.type != "cpu" else f"the model is {p.dtype}"
            for p in (*self.dense.parameters(), *self.dense.buffers())
            if p.device.type != "cpu" or (p.is_floating_point() and p.dtype != torch.float32)
        }
        self._elsewhere = min(others, default=None)
        if self._elsewhere is None and self.config is not None:
            self._rebuild()
        return self

    def _cannot(self, x: Tensor) -> str | None:
        if self.config is None:
            return "not focused"
        if x.shape[0] == 0:
            return "an empty batch"
        if self._elsewhere is not None:
            return f"{self._elsewhere}; the kernels are float32 on the CPU"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on; the kernels are float32"
        if x.device.type != "cpu":
            return f"the input is on {x.device.type}; the kernels are for the CPU"
        if x.dtype != torch.float32:
            return f"the input is {x.dtype}; the kernels are float32"
        return None

    def _dense(self, x: Tensor, why: str) -> Any:
        if why != "not focused" and why != "an empty batch" and why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"running densely: {why}", RuntimeWarning, stacklevel=4)
        self.last_aoi, self.last_route = [], ["dense"] * x.shape[0]
        with torch.no_grad():
            return self.dense(x)

    def _forward(self, x: Tensor, aoi: AoI | Tensor | Sequence[Tensor] | None) -> Any:
        runner = self._runner
        assert runner is not None
        x = x.detach()
        value = runner.stem(x)
        rows, grid = runner.maps(value)
        mask = self._choose(rows, grid) if aoi is None else _given(aoi, grid)
        self.last_aoi = list(mask.clone())
        level = runner.level(mask)
        self.last_route = self._routes(level)
        dense = [i for i, route in enumerate(self.last_route) if route == "dense"]
        if not dense:
            return runner.tail(value, mask, level)
        if len(dense) == len(self.last_route):
            return self.dense(x)
        focused = [i for i in range(grid[0]) if i not in set(dense)]
        kept = runner.part(value, torch.tensor(focused), x)
        parts = runner.tail(kept, mask[focused]), self.dense(x[dense])
        return _merge(parts, (focused, dense), grid[0])

    def _choose(self, rows: Tensor, grid: tuple[int, int, int]) -> Tensor:
        config = self.config
        assert config is not None
        assert self._relevance is not None
        if config.threshold == float("-inf"):
            return torch.ones(grid, dtype=torch.bool)
        assert self._runner is not None
        map_ = self._relevance(rows, grid, self._runner.backend)
        return select(map_, config.threshold, grid=config.grid, shape=config.shape, halo=config.halo).contiguous()

    def _routes(self, level: Level) -> list[str]:
        images, height, width = level.mask.shape
        if not self.route:
            return ["focused"] * images
        routes = [
            "dense" if n == height * width or (n == 0 and self.on_empty == "dense") else "focused"
            for n in level.counts.tolist()
        ]
        if self.costs is not None and "focused" in routes:
            limit = 1 - HYSTERESIS if self._mostly_dense else 1 + HYSTERESIS
            self._mostly_dense = self.costs.predict(level) > limit * self.costs.dense_ms
            if self._mostly_dense:
                return ["dense"] * images
        return routes


def _fit(config: FocusConfig, traced: Traced, plan: Plan, calibration: Sequence[Tensor]) -> Fitted:
    features = evidence = None
    if config.relevance in ("novelty", "evidence") and calibration:
        features, evidence = fitting_set(traced, plan.cut.node, calibration)
    relevance = make_relevance(config.relevance, plan.cut.channels, features, evidence)
    if config.fill == "mean" and not calibration:
        raise FocusError("fill: 'mean' needs calibration batches")
    fills = mean_fills(plan, calibration) if config.fill == "mean" else zero_fills(plan)
    return Fitted(relevance, {node.name: fill for node, fill in fills.items()})


def _check_config(config: FocusConfig) -> None:
    if config.threshold != config.threshold:
        raise FocusError("threshold: NaN; every comparison with it is false, which would drop every position")
    if config.fill not in ("zero", "mean"):
        raise FocusError(f"fill: expected 'zero' or 'mean', got {config.fill!r}")
    if config.shape not in ("cells", "rect"):
        raise FocusError(f"shape: expected 'cells' or 'rect', got {config.shape!r}")
    if config.grid < 1 or config.halo < 0:
        raise FocusError(f"grid and halo: expected at least 1 and 0, got {config.grid} and {config.halo}")


def _given(aoi: AoI | Tensor | Sequence[Tensor], grid: tuple[int, int, int]) -> Tensor:
    area = aoi if isinstance(aoi, AoI) else AoI.from_mask(aoi)
    if area.mask.shape[0] not in (1, grid[0]):
        raise FocusError(f"aoi: {area.mask.shape[0]} maps for a batch of {grid[0]}")
    mask = area.resize(grid[1], grid[2]).mask
    return mask.expand(grid).contiguous()


def _merge(parts: tuple[Any, Any], places: tuple[list[int], list[int]], images: int) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        whole = first.new_empty(images, *first.shape[1:])
        for part, place in zip(parts, places, strict=True):
            whole[place] = part
        return whole
    if isinstance(first, dict):
        return {k: _merge((first[k], parts[1][k]), places, images) for k in first}
    if isinstance(first, list | tuple):
        merged = [_merge((a, b), places, images) for a, b in zip(first, parts[1], strict=True)]
        return type(first)(merged)
    return first


def _repack(module: nn.Module, incompatible: object) -> None:
    assert isinstance(module, FocusedModel)
    module._rebuild()
