"""The bed of the MEDIC study: data, networks, and one poisoned network for every attack and seed.

Poisoned networks are trained on the spot for this study and live in a temporary folder while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerscope import data as datasets
from layerscope import nets, training
from layerscope.data import Dataset
from layerscope.methods import medic
from layerscope.methods.medic import attacks
from layerscope.methods.medic.attacks import eval as stress
from layerscope.training.augment import flip_crop

Threat = medic.Threat

#: name -> (network, norm)
NETS = {
    "resnet": ("resnet:blocks=1,width=16,preact=true,final_norm=true,stem_stride=2", "batch"),
    "vgg": ("vgg:width=16,depth=6", "batch"),
    "groupnorm": ("resnet:blocks=1,width=16,preact=true,final_norm=true,stem_stride=2", "group:size=4"),
}

#: attack -> (threat, rate, mode); the others are trained in ways of their own
PLAIN: dict[str, tuple[Threat, float, Any]] = {
    "badnet": (Threat(attacks.BadNet(), 0), 0.1, "dirty"),
    "low": (Threat(attacks.BadNet(), 0), 0.005, "dirty"),
    "blend": (Threat(attacks.Blend(0.2), 0), 0.1, "dirty"),
    "warp": (Threat(attacks.Warp(), 0), 0.1, "noise"),
    "sinusoid": (Threat(attacks.Sinusoid(), 0), 0.8, "clean"),
    "reflection": (Threat(attacks.Reflection(), 0), 0.1, "dirty"),
    "polygon": (Threat(attacks.Polygon(), 0, (1,)), 0.03, "dirty"),
    "filter": (Threat(attacks.Filter(), 0, (1,)), 0.03, "dirty"),
    "clean-label": (Threat(attacks.BadNet(), 0), 0.15, "clean"),
}
#: Seen while the defaults were chosen; the other five are the test.
SEEN = ("badnet", "blend", "warp", "sinusoid", "clean-label")
UNSEEN = ("composite", "reflection", "polygon", "filter", "adaptive")
ATTACKS = (*SEEN, *UNSEEN)
RANGE = (-1.0, 1.0)


@dataclass(frozen=True)
class Bed:
    """Data on a device. The clean samples are the first ones of ``train``, which the poisoned network saw too."""

    train: Dataset
    test: Dataset
    epochs: int
    """Of training a poisoned network."""
    batch_size: int
    """Of training a poisoned network."""

    def clean(self, samples: int) -> Dataset:
        """Trusted samples, all that a defence sees."""
        return self.train.take(slice(0, samples))

    @property
    def held(self) -> Dataset:
        """Clean samples that no defence sees: what a choice may be made by."""
        return self.train.take(slice(len(self.train) // 2, len(self.train) // 2 + 4000))


def make_bed(device: str, train_samples: int, test_samples: int, epochs: int, batch_size: int) -> Bed:
    """Fashion-MNIST in one fixed random order."""
    both = []
    for split, count, seed in (("train", train_samples, 42), ("test", test_samples, 43)):
        data = datasets.load("fashion-mnist", split)
        data = data.take(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count])
        both.append(Dataset(data.name, data.x.to(device), data.y.to(device), data.classes))
    return Bed(*both, epochs, batch_size)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip and crop; on an accelerator in the plain memory order, which its convolutions of one channel prefer."""
    moved = flip_crop(x, generator)
    return moved if x.device.type == "cpu" else moved.flatten(1).view(x.shape)


def network(net: str, bed: Bed, seed: int) -> nn.Module:
    """A network with fresh weights; on a CPU in the memory order that its convolutions of few channels prefer."""
    spec, norm = NETS[net]
    made = nets.build(spec, norm, in_shape=bed.train.in_shape, classes=bed.train.classes, seed=seed)
    device = bed.train.x.device
    order = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    return made.to(device=device, memory_format=order)


def threat_of(attack: str, bed: Bed) -> Threat | None:
    """The threat of an attack whose trigger needs no training."""
    if attack == "composite":
        low, high = RANGE
        partners = bed.train.x[(bed.train.y == 1).nonzero().flatten()[:100]].cpu()
        return Threat(attacks.Composite((partners - low) / (high - low)), 2, (0,))
    return PLAIN[attack][0] if attack in PLAIN else None


def poisoned(net: str, attack: str, seed: int, bed: Bed) -> tuple[nn.Module, Threat]:
    """A network trained with the attack (``none`` for without), and the threat to judge it by."""
    model = network(net, bed, seed)
    options: dict[str, Any] = {
        "epochs": bed.epochs, "batch_size": bed.batch_size, "lr": 0.1 * (bed.batch_size / 128) ** 0.5,
        "schedule": "onecycle", "weight_decay": 5e-4, "optimizer": "sgd:nesterov=true", "augment": augment,
        "seed": seed, "progress": False,
    }  # fmt: skip
    if attack == "none":
        training.fit(model, bed.train, **options)
        return model.eval(), Threat(attacks.BadNet(), 0)
    if attack == "composite":
        _, trigger = attacks.train_composite(model, bed.train, **options)
        return model.eval(), Threat(trigger, 2, (0,))
    if attack == "adaptive":
        return model, Threat(stress.train_adaptive(model.eval(), bed.train, target=0, **options), 0)
    threat, rate, mode = PLAIN[attack]
    data = attacks.Poisoned(
        bed.train, threat.trigger, target=threat.target, rate=rate, mode=mode,
        sources=threat.sources if mode != "clean" else None, value_range=RANGE, seed=seed,
    )  # fmt: skip
    attacks.train_poisoned(model, data, adversary=attacks.PGD() if attack == "clean-label" else None, **options)
    return model.eval(), threat
