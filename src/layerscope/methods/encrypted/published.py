"""The numbers that the paper prints (arXiv 1906.00148, tables 2 to 4), and what follows from them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One published system; None where the paper gives nothing. Seconds of large networks are projections."""

    task: str
    system: str
    adds: float
    gates: float
    depth: float
    leveled_seconds: float
    full_seconds: float
    accuracy: float

    def gate_milliseconds(self) -> float:
        """Fully bootstrapped milliseconds a gate that the row implies."""
        return 1e3 * self.full_seconds / self.gates

    def leveled_microseconds(self) -> float:
        """Leveled microseconds a gate that the row implies."""
        return 1e6 * self.leveled_seconds / self.gates

    def gates_per_add(self) -> float:
        """Gates an addition that the row implies."""
        return self.gates / self.adds


ROWS: tuple[Row, ...] = (
    Row("MNIST", "TCN", 19e3, 8.3e6, 8.8e3, 88.6, 108e3, 99.54),
    Row("MNIST", "SHE", 19e3, 856e3, 2.0e3, 9.3, 11e3, 99.54),
    Row("MNIST", "DSHE", 304e3, 11.6e6, 6.2e3, 124.9, 149e3, 99.77),
    Row("CIFAR-10", "TCN", 4.4e6, 2.8e9, 25.1e3, 31e3, 37e6, 92.54),
    Row("CIFAR-10", "SHE", 4.4e6, 211e6, 5.2e3, 2258, 2.7e6, 92.54),
    Row("CIFAR-10", "DSHE", 68e6, 3.3e9, 13.7e3, 12041, 42.5e6, 94.62),
    Row("ImageNet", "AlexNet", 0.14e9, 5.5e9, 6.8e3, 89e3, 72e6, 54.17),
    Row("ImageNet", "ResNet-18", 0.36e9, 15e9, 13.7e3, 0.23e6, 195e6, 66.8),
    Row("ImageNet", "ShuffleNet", 28e6, 1.1e9, 3.9e3, 18e3, 14e6, 69.4),
)

#: One gate of the fully bootstrapped columns, in seconds: what all rows agree on.
GATE_SECONDS = 0.0129
#: Bytes of one encrypted bit of a request in the paper.
BIT_BYTES = 32 * 1024


def replayed_seconds(row: Row) -> float:
    """Fully bootstrapped seconds from the row's gates alone."""
    return row.gates * GATE_SECONDS


def request_mebibytes(pixels: int = 784, bits: int = 5) -> float:
    """Size of one encrypted image; 122.5 for MNIST, as the paper says (it writes MB)."""
    return pixels * bits * BIT_BYTES / 2**20
