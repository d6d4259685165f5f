"""One training loop for every network of the study; on a GPU a step is recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerscope.methods.sampling import SamplingLayer, centred, folded

WARM_UP = 3  # steps before a graph is recorded


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch: int,
    lr: float,
    copies: int,
    seed: int,
    centre: bool = False,
) -> tuple[float, bool]:
    """AdamW without decay, cosine schedule, cross entropy; network and data on one device.

    Args:
        model: trained in place.
        x: images [N, ...].
        y: labels [N].
        epochs: passes over the data.
        batch: images of one step; what is left of an epoch is left out.
        lr: at the start.
        copies: samples that a sampling network draws of every image in one step.
        seed: of the order and the noise.
        centre: count the inputs of sampling units from their running mean while training.

    Returns:
        Mean loss of the last hundred steps, and whether it was not finite.
    """
    device, per_epoch = x.device, len(x) // batch
    steps = epochs * per_epoch
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(x), generator=order)[: per_epoch * batch].view(-1, batch) for _ in range(epochs)]
    batches = torch.cat(rows).to(device)
    factor = torch.tensor([0.5 * (1 + math.cos(math.pi * t / steps)) * lr for t in range(steps)], device=device)
    on_gpu = device.type == "cuda"
    rate = torch.tensor(lr, device=device) if on_gpu else lr
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, capturable=on_gpu, fused=on_gpu)
    samples = [m for m in model.modules() if isinstance(m, SamplingLayer) and m.mode not in ("sign", "mean")]
    losses = torch.zeros(steps, device=device)
    model.train()

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        if copies > 1 and samples:
            with folded(model, copies):
                out = model(images)
            loss = F.cross_entropy(out, labels.repeat(copies))
        else:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    take = _recorded(step, x[batches[0]], y[batches[0]]) if on_gpu else step
    units = any(isinstance(m, SamplingLayer) for m in model.modules())
    with centred(model) if centre and units else nullcontext():
        for t in range(steps):
            if on_gpu:
                rate.copy_(factor[t])
            else:
                optimizer.param_groups[0]["lr"] = float(factor[t])
            rows = batches[t]
            losses[t] = take(x[rows], y[rows])
    tail = float(losses[-100:].mean())
    return tail, not math.isfinite(tail)


def _recorded(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The same step, replayed from a CUDA graph once it has run a few times."""
    images, labels, done = x.clone(), y.clone(), 0
    graph: torch.cuda.CUDAGraph | None = None
    side, loss = torch.cuda.Stream(), None

    def take(x: Tensor, y: Tensor) -> Tensor:
        nonlocal done, graph, loss
        images.copy_(x)
        labels.copy_(y)
        if done < WARM_UP:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                value = step(images, labels)
            torch.cuda.current_stream().wait_stream(side)
            done += 1
            return value
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = step(images, labels)
        graph.replay()
        return loss

    return take
