"""Defences that switch channels off: Fine-Pruning, channel Lipschitz pruning, adversarial neuron pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from layerscope import training
from layerscope.methods.medic.baselines.tuning import classifier_of, trainable, tuned
from layerscope.methods.medic.checks import as_clean, private_copy
from layerscope.methods.medic.errors import MedicError
from layerscope.methods.medic.taps import feeds
from layerscope.probe.outputs import pick
from layerscope.probe.points import role_of
from layerscope.training.augment import Augment
from layerscope.training.evaluation import home


@dataclass(frozen=True)
class FinePrune:
    """The penultimate features that are least active on clean data are switched off for good, then fine-tuning.

    Source: Liu, Dolan-Gavitt, Garg 2018, arXiv 1805.12185.
    """

    share: float = 0.5
    lr: float = 0.01
    epochs: int = 20
    batch_size: int = 64
    augment: str | Augment | None = None

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The pruned and tuned copy."""
        data, net = as_clean(clean), trainable(model)
        head = classifier_of(net)
        inputs: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().cpu()))
        try:
            training.predict(net, data.x)
        finally:
            handle.remove()
        activity = torch.cat(inputs).flatten(0, -2).mean(0)
        off = activity.argsort()[: int(self.share * len(activity))].to(head.weight.device)

        class Off(training.Callback):
            def on_start(self, run: training.Run) -> None:
                with torch.no_grad():
                    head.weight[:, off] = 0

            on_step = on_start

        return tuned(
            net, data, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size, augment=self.augment, seed=seed,
            callbacks=[Off()],
        )  # fmt: skip


@dataclass(frozen=True)
class CLP:
    """Channels whose Lipschitz bound stands out in their layer are switched off: no data, no training.

    Bound of channel c: largest singular value of its kernel as a [C_in, k k] matrix, times |gamma_c| / sqrt(var_c +
    eps); off if above mean + u std of the layer. Source: Zheng et al., ECCV 2022.
    """

    u: float = 3.0

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The pruned copy; two samples of ``clean`` show which norm follows which layer."""
        net = private_copy(model)
        device, _ = home(net)
        pairs = feeds(net, as_clean(clean).x[:2].to(device))
        modules = dict(net.named_modules())
        found = 0
        with torch.no_grad():
            for first, then in pairs:
                conv, norm = modules[first], modules[then]
                variance, gain, shift = (getattr(norm, n, None) for n in ("running_var", "weight", "bias"))
                if not (isinstance(variance, Tensor) and isinstance(gain, Tensor) and isinstance(shift, Tensor)):
                    continue
                if not isinstance(conv, nn.Conv2d):
                    continue
                found += 1
                bound = torch.linalg.matrix_norm(conv.weight.flatten(2), 2)
                bound = bound * gain.abs() / (variance + norm.eps).sqrt()
                off = bound > bound.mean() + self.u * bound.std()
                gain[off], shift[off] = 0, 0
        if not found:
            raise MedicError(f"{type(net).__name__} has no convolution before a batch norm for CLP to prune")
        return net.requires_grad_(True)


@dataclass(frozen=True)
class ANP:
    """Adversarial neuron pruning: a mask on norm gains, learned while gains and biases are moved against it.

    Minimizes alpha L(m) + (1 - alpha) max L(m + d, xi), |d|, |xi| <= eps relative, the maximum by one signed step;
    gains whose mask ends at or below the threshold are switched off. In evaluation mode throughout.
    Source: Wu and Wang, NeurIPS 2021, arXiv 2110.14430.
    """

    eps: float = 0.4
    alpha: float = 0.2
    lr: float = 0.2
    iterations: int = 2000
    threshold: float = 0.2
    batch_size: int = 128

    def __call__(self, model: nn.Module, clean: Any, seed: int = 0) -> nn.Module:
        """The pruned copy."""
        data, net = as_clean(clean), private_copy(model)
        device, _ = home(net)
        x, y = data.x.to(device), data.y.to(device)
        weights = dict(net.named_parameters())
        norms = [name for name, m in net.named_modules() if role_of(m) == "norm" and _has_gains(weights, name)]
        if not norms:
            raise MedicError(f"{type(net).__name__} has no norm with gains: ANP has nothing to prune")
        masks = [torch.ones_like(weights[f"{n}.weight"]).requires_grad_(True) for n in norms]
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(masks, lr=self.lr, momentum=0.9)

        def loss(index: Tensor, moves: list[Tensor], shifts: list[Tensor]) -> Tensor:
            changed = {}
            for name, mask, move, shift in zip(norms, masks, moves, shifts, strict=True):
                changed[f"{name}.weight"] = weights[f"{name}.weight"] * (mask + move)
                changed[f"{name}.bias"] = weights[f"{name}.bias"] * (1 + shift)
            return F.cross_entropy(pick(functional_call(net, changed, (x[index],)), None), y[index])

        for _ in range(self.iterations):
            index = torch.randint(len(x), (min(self.batch_size, len(x)),), generator=order).to(device)
            still = [torch.zeros_like(m).requires_grad_(True) for m in (*masks, *masks)]
            half = len(masks)
            slopes = torch.autograd.grad(loss(index, still[:half], still[half:]), still)
            worst = [self.eps * s.sign() for s in slopes]
            rest = [torch.zeros_like(m) for m in masks]
            total = self.alpha * loss(index, rest, rest) + (1 - self.alpha) * loss(index, worst[:half], worst[half:])
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]  # torch's stubs
            optimizer.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        with torch.no_grad():
            for name, mask in zip(norms, masks, strict=True):
                weights[f"{name}.weight"][mask <= self.threshold] = 0
        return net.requires_grad_(True)


def _has_gains(weights: Mapping[str, Tensor], norm: str) -> bool:
    return all(f"{norm}.{kind}" in weights and weights[f"{norm}.{kind}"].ndim == 1 for kind in ("weight", "bias"))
