"""Data-parallel training on two processes: one network, two streams of noise."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from layerscope.methods.sampling import Binarize, SamplingError, SamplingLinear, centred, folded, predict


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        net = nn.Sequential(Binarize(), SamplingLinear(16, 12), SamplingLinear(12, 8), nn.Linear(8, 3))
        parallel = DistributedDataParallel(net)
        x, y = torch.randn(40, 16, generator=torch.Generator().manual_seed(rank)), torch.arange(40) % 3
        torch.manual_seed(100 + rank)
        optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.01)
        with centred(parallel, sync=True):
            for _ in range(3):
                with folded(parallel, 4):
                    out = parallel(x)
                nn.functional.cross_entropy(out, y.repeat(4)).backward()
                optimizer.step()
                optimizer.zero_grad()
        samples = net[1](torch.ones(200, 16))
        probs = predict(parallel, torch.ones(2, 16), 10, seed=3).probs
        torch.save((net.state_dict(), samples.detach(), probs), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_train_one_network_with_noise_of_their_own(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    (state, samples, probs), (other, others, same) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert state.keys() == other.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, other[key])
    assert not torch.equal(samples, others)
    torch.testing.assert_close(probs, same)


def test_means_of_processes_need_processes():
    with pytest.raises(SamplingError, match="init_process_group"), centred(SamplingLinear(16, 4), sync=True):
        pass
