"""Two processes with sync compute what one process computes on the joined batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from layerscope.norms import MixtureNorm


def layer() -> MixtureNorm:
    made = MixtureNorm(5, 3, temperature=2.0, sync=True).double()
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2, 5))
    return made


def data(seed: int = 0) -> Tensor:
    return torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 3


class Net(nn.Module):
    """Two convolutions with mixture norms; the second pair can be checkpointed."""

    def __init__(self, sync: bool, through: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.through = through
        self.first = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), MixtureNorm(4, 3, sync=sync), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), MixtureNorm(4, 2, sync=sync), nn.ReLU())
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = checkpoint(self.second, x, use_reentrant=False) if self.through else self.second(x)
        return self.last(x.mean((2, 3)))


def train(net: nn.Module, part: slice) -> None:
    """Three steps on a part of each batch of six."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        x, y = data(10 + step)[part], (torch.arange(6) % 3)[part]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def work_whole(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for sync, through in ((True, False), (True, True), (False, False)):
            net = Net(sync, through).double()
            net.load_state_dict(torch.load(f"{folder}/whole.pt"))
            net = DistributedDataParallel(net)
            train(net, slice(0, 3) if rank == 0 else slice(3, 6))
            torch.save(net.module.state_dict(), f"{folder}/whole{sync}{through}{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        made = layer()
        made.load_state_dict(torch.load(f"{folder}/start.pt"))
        # parts of unequal size: the statistics are sums over processes, not averages of averages
        part = slice(0, 2) if rank == 0 else slice(2, 6)
        x = data(1)[part].clone().requires_grad_()
        y = made(x)
        y.backward(data(2)[part])
        torch.save((y.detach(), x.grad, made.weight.grad, made.bias.grad, made.state_dict()), f"{folder}/{rank}.pt")
        fresh = layer()
        fresh(data(3)[part])
        torch.save(fresh.state_dict(), f"{folder}/fresh{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    one = layer()
    one(data(0))
    torch.save(one.state_dict(), tmp_path / "start.pt")
    mp.spawn(work, (free_port(), str(tmp_path)), nprocs=2)
    x = data(1).requires_grad_()
    y = one(x)
    y.backward(data(2))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    def close(a: Tensor, b: Tensor | None) -> None:
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

    close(torch.cat([p[0] for p in parts]), y.detach())
    close(torch.cat([p[1] for p in parts]), x.grad)
    # weights' gradients stay local: data-parallel training adds them up itself
    close(parts[0][2] + parts[1][2], one.weight.grad)
    close(parts[0][3] + parts[1][3], one.bias.grad)
    for name, value in one.state_dict().items():
        close(parts[0][4][name].double(), value.double())
        close(parts[1][4][name].double(), value.double())
    fresh = [torch.load(tmp_path / f"fresh{rank}.pt") for rank in range(2)]
    for name, value in fresh[0].items():
        assert torch.equal(value, fresh[1][name]), name


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_data_parallel_training_equals_one_process_on_the_joined_batches(tmp_path: Path) -> None:
    start = Net(False, False).double()
    start(data(9))  # both mixtures are seeded
    torch.save(start.state_dict(), tmp_path / "whole.pt")
    mp.spawn(work_whole, (free_port(), str(tmp_path)), nprocs=2)
    for through in (False, True):
        one = Net(False, through).double()
        one.load_state_dict(start.state_dict())
        train(one, slice(0, 6))
        for rank in range(2):
            other = torch.load(tmp_path / f"whole{True}{through}{rank}.pt")
            for name, value in one.state_dict().items():
                torch.testing.assert_close(other[name], value, rtol=1e-8, atol=1e-8)
    # without sync every process has its own statistics; the weights still agree
    parts = [torch.load(tmp_path / f"whole{False}{False}{rank}.pt") for rank in range(2)]
    for name in ("first.0.weight", "first.1.weight", "last.bias"):
        assert torch.equal(parts[0][name], parts[1][name])
