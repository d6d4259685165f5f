"""Polynomials that stand in for a ReLU where a scheme can only add and multiply."""

from __future__ import annotations

from torch import Tensor, nn

#: name -> coefficients of 1, z, z^2, ...
COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "square": (0.0, 0.0, 1.0),
    "quad8": (0.5, 0.25, 0.125),
    # between a line and a square: how much of the quadratic term a depth bears
    "line10": (0.0, 1.0, 0.1),
    "line1": (0.0, 1.0, 1.0),
    # least squares of the ReLU under N(0, 1), which is what a batch norm hands on: Hermite expansion to degree 2 and 4
    "herm2": (0.398942 - 0.199471, 0.5, 0.199471),
    "herm4": (0.398942 - 0.199471 - 3 * 0.0166226, 0.5, 0.199471 + 6 * 0.0166226, 0.0, -0.0166226),
}


class Polynomial(nn.Module):
    """``sum_k c_k z^k`` by Horner's rule.

    Args:
        name: ``square`` (CryptoNets), ``quad8`` (z^2/8 + z/4 + 1/2, Faster CryptoNets), ``herm2``, ``herm4``,
            ``line10`` (z + z^2/10) or ``line1`` (z + z^2).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.coefficients = name, COEFFICIENTS[name]

    def extra_repr(self) -> str:
        """The name."""
        return self.name

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise."""
        out = z.new_full((), self.coefficients[-1])
        for c in self.coefficients[-2::-1]:
            out = out * z + c
        return out
