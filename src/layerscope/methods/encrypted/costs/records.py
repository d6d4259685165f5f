"""The cost report as frozen plain values. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from layerscope._show import Shown


@dataclass(frozen=True)
class LayerCost:
    """What one operation will cost for one sample, before any key exists."""

    name: str
    kind: str
    units: int
    """Outputs."""
    weights: int
    """Nonzero products of the layer (each a shift, so free): Z."""
    adds: int
    """Z - units."""
    width: int
    """Bits of the widest value, by sound ranges."""
    shift: tuple[int, int] | None
    """Smallest and largest right shift of an activation."""
    gates: tuple[tuple[str, int], ...]
    """(accumulator, two-input gates); NOT and shifts are free."""
    sampled: int
    """Neurons built for the accumulators that have no closed form; 0 where every count is closed form."""
    and_depth: int
    """AND gates on the longest path of this operation alone."""
    bootstraps: int
    """Lookups and exact bit removals of a lookup engine."""
    lookup_bits: int | None
    """Bits that reach the widest lookup after the removal of low bits."""
    gate_seconds: float | None
    lookup_seconds: float | None
    paper_eq1: float | None
    """Depth by the paper's equation 1, for comparison only: it is not the depth of the circuit."""
    reason: str = ""
    """Why there is no price."""

    def gates_of(self, accumulator: str) -> int:
        """Gates under one accumulator; an operation without sums has the same under each."""
        return dict(self.gates).get(accumulator, 0)


@dataclass(frozen=True)
class LeveledNote:
    """Where leveled evaluation stops."""

    layer: str
    gate: int | None
    """First AND without an admissible selector; None if the whole neuron is legal."""
    and_depth: int | None
    budget: int


@dataclass(frozen=True)
class Advice:
    """One choice of widths: its price, and its accuracy where it was measured."""

    bits: int
    act_bits: int
    lookup_bits: int
    channels: float
    """Share of the activations' lookups that stay; 1: all channels."""
    bootstraps: int
    factor: float
    """Bootstraps over those of the settings to beat."""
    gates: int
    """With the ``csa`` accumulator."""
    seconds: float | None
    """One sample by lookups on one core."""
    widest_lookup: int
    widths: tuple[tuple[str, int, int], ...] = ()
    """(convolution, channels that stay, channels before) where channels go."""
    accuracy: float | None = None
    lost: float | None = None
    """Accuracy lost against the float network on the same samples."""
    lost_at_most: float | None = None
    """Upper end of its one-sided 95 % interval."""
    verdict: str = "not measured"
    """``ruled out``: it has no more of anything than one that failed, or costs more than one that passed."""

    @property
    def change(self) -> str:
        """The settings in one line."""
        return f"bits={self.bits}, act_bits={self.act_bits}, lookup_bits={self.lookup_bits}, channels={self.channels:g}"


@dataclass(frozen=True)
class Advised(Shown):
    """Cheaper choices of widths by price, and the one to take."""

    source: str
    rows: tuple[Advice, ...]
    base_bootstraps: int
    base: tuple[int, int, int]
    """(bits, act_bits, lookup_bits) of the settings to beat."""
    most_loss: float
    """The accuracy budget."""
    best: Advice | None = None
    """The cheapest that stays within the budget on data that nothing was chosen on; None: there is none."""
    base_accuracy: float | None = None
    """Of the settings to beat, on the same data as ``best``."""
    base_lost: float | None = None
    judged: int = 0
    """Candidates that were judged on that data; more than one takes something from its independence."""
    unmeasured: int = 0
    """Candidates that the search neither measured nor ruled out."""
    reason: str = ""


@dataclass(frozen=True)
class CostReport(Shown):
    """The explainable budget of encrypted inference, layer by layer."""

    source: str
    in_shape: tuple[int, ...]
    bits: int
    act_bits: int
    accumulators: tuple[str, ...]
    layers: tuple[LayerCost, ...]
    gate_timing: str
    """Name and source of the gate's seconds."""
    lookup_timing: str
    leveled: LeveledNote | None
    input_bytes: int | None
    """Request of one sample, gate by gate."""
    peak_values: int
    """Most numbers alive at once: memory is this times a ciphertext."""
    key_bytes: int | None
    failure_per_bootstrap: float | None
    """Largest failure probability of one bootstrap that keeps an inference below 2^-17."""
    notes: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()
    seconds: float = 0.0
    """What this report itself took."""

    def gates(self, accumulator: str | None = None) -> int:
        """All gates under one accumulator (the first if None)."""
        name = accumulator or self.accumulators[0]
        return sum(layer.gates_of(name) for layer in self.layers)

    @property
    def bootstraps(self) -> int:
        """All lookups and bit removals."""
        return sum(layer.bootstraps for layer in self.layers)

    @property
    def adds(self) -> int:
        """All additions."""
        return sum(layer.adds for layer in self.layers)

    @property
    def and_depth(self) -> int:
        """Sum of the operations' AND-depths: bounds the longest path; the circuit backend has it exactly."""
        return sum(layer.and_depth for layer in self.layers)

    @property
    def gate_seconds(self) -> float | None:
        """One sample gate by gate on one core; None if any priced layer has no time."""
        return _total([layer.gate_seconds for layer in self.layers if not layer.reason])

    @property
    def lookup_seconds(self) -> float | None:
        """One sample by lookups on one core."""
        return _total([layer.lookup_seconds for layer in self.layers if not layer.reason])

    @property
    def unpriced(self) -> tuple[LayerCost, ...]:
        """Operations that cannot be evaluated; the totals leave them out."""
        return tuple(layer for layer in self.layers if layer.reason)


def _total(values: list[float | None]) -> float | None:
    return None if any(v is None for v in values) else sum(v for v in values if v is not None)
