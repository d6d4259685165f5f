"""Memory for rows that is used again from pass to pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Workspace(threading.local):
    """Buffers that are used again, so that a pass asks the system for no memory. One set per thread."""

    def __init__(self, memory: Callable[[int], Tensor]) -> None:
        self.memory = memory
        self.free: list[Tensor] = []
        self.lent: dict[int, Tensor] = {}
        self.rest = torch.empty(0)
        self.plain: dict[Any, Any] = {}
        """Sizes and numbers that the stem left for what comes after the cut."""

    def take(self, rows: int, channels: int) -> Tensor:
        """An uninitialised [rows, channels] tensor."""
        need = rows * channels
        fits = [b for b in self.free if b.numel() >= need]
        if fits:
            buffer = min(fits, key=Tensor.numel)
            self.free = [b for b in self.free if b is not buffer]
        else:
            buffer = self._fresh(max(need, 1))
        self.lent[buffer.data_ptr()] = buffer
        return buffer[:need].view(rows, channels)

    def _fresh(self, floats: int) -> Tensor:
        floats = -(-floats // 16) * 16
        if self.rest.numel() < floats:
            self.rest = self.memory(max(floats, 1 << 22))
        mine, self.rest = self.rest[:floats], self.rest[floats:]
        return mine

    def give(self, data: Tensor) -> None:
        """Return what :meth:`take` gave; anything else is left alone."""
        if (buffer := self.lent.pop(data.data_ptr(), None)) is not None:
            self.free.append(buffer)

    def clear(self) -> None:
        """Take back everything that a failed pass left behind."""
        self.free += self.lent.values()
        self.lent = {}
