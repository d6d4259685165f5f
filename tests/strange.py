"""Networks and inputs that users have and no reference net looks like, as data: name -> (network, batch, options)."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from layerscope import Profile

Case = tuple[nn.Module, Any, dict[str, Any]]
CASES: dict[str, Callable[[], Case]] = {}

IMAGES, LABELS = (8, 3, 12, 12), torch.arange(8) % 5


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    CASES[function.__name__] = function
    return function


class Small(nn.Module):
    """conv, norm, ReLU twice; pooled; linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))


def like_small(forward: Callable[[Small, Any], Any]) -> Small:
    """A :class:`Small` with another forward, given the class to call the usual one."""
    return type("Variant", (Small,), {"forward": forward})()


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(IMAGES), LABELS


@case
def dict_handed_over_whole() -> Case:
    net = like_small(lambda self, batch: Small.forward(self, batch["image"]))
    return net, ({"image": torch.randn(IMAGES), "names": ["a"] * 8}, LABELS), {}


@case
def keywords() -> Case:
    class Net(Small):
        def forward(self, image: Tensor, *, age: Tensor | None = None) -> Any:
            return super().forward(image) + (0 if age is None else age)

    return Net(), ({"image": torch.randn(IMAGES), "age": torch.randn(8, 1)}, LABELS), {}


@case
def two_positional_inputs() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.images, self.table = Small(), nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
            self.head = nn.Linear(8, 5)

        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            out: Tensor = self.images(image) + self.head(self.table(row))
            return out

    return Net(), ((torch.randn(IMAGES), torch.randn(8, 4)), LABELS), {}


class Tokens(nn.Module):
    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 20)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        away = None if attention_mask is None else attention_mask == 0
        z = self.norm(self.blocks(self.embed(input_ids), src_key_padding_mask=away))
        return {"logits": self.head(z if self.dense else z.mean(1))}


@case
def tokens_with_a_mask() -> Case:
    ids, mask = torch.randint(20, (8, 6)), torch.ones(8, 6, dtype=torch.long)
    return Tokens(dense=False), ({"input_ids": ids, "attention_mask": mask}, torch.arange(8)), {}


@case
def language_model() -> Case:
    ids = torch.randint(20, (8, 6))
    return Tokens(dense=True), (ids, ids.roll(-1, 1)), {}


@case
def graph() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            sums = torch.zeros(len(x), 8).index_add(0, edges[0], self.lift(x)[edges[1]])
            out: Tensor = self.head(torch.relu(self.norm(sums)))
            return out

    return Net(), ((torch.randn(20, 6), torch.randint(20, (2, 40))), torch.arange(20) % 5), {}


@case
def segmentation() -> Case:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.deep = self.step(3, 8), self.step(8, 16)
            self.up, self.merge, self.out = nn.ConvTranspose2d(16, 8, 2, 2), self.step(16, 8), nn.Conv2d(8, 4, 1)

        @staticmethod
        def step(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> Tensor:
            a = self.down(x)
            b = self.deep(functional.max_pool2d(a, 2))
            out: Tensor = self.out(self.merge(torch.cat([self.up(b), a], 1)))
            return out

    labels = torch.randint(4, (8, 12, 12))
    labels[:, :3] = -100
    return UNet(), (torch.randn(IMAGES), labels), {}


@case
def generator() -> Case:
    net = nn.Sequential(
        nn.ConvTranspose2d(16, 16, 4), nn.BatchNorm2d(16), nn.ReLU(True),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    return net, (torch.randn(8, 16, 1, 1), None), {}


@case
def autoencoder() -> Case:
    net = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32), nn.Sigmoid())
    x = torch.rand(8, 32)
    return net, (x, x), {"loss": "mse"}


@case
def regression() -> Case:
    net = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    return net, (torch.randn(8, 6), torch.randn(8)), {"loss": "mse"}


@case
def own_loss_as_output() -> Case:
    return like_small(lambda self, x: Small.forward(self, x).square().mean()), images(), {}


@case
def output_in_an_object() -> Case:
    class Result:
        def __init__(self, logits: Tensor) -> None:
            self.loss, self.logits = None, logits

    return like_small(lambda self, x: Result(Small.forward(self, x))), images(), {}


@case
def two_views_in_one_batch() -> Case:
    return like_small(lambda self, x: Small.forward(self, torch.cat([x, x.flip(3)]))[: len(x)]), images(), {}


@case
def recurrent() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.norm, self.head = nn.LSTM(5, 12, 2), nn.LayerNorm(12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(self.lstm(x.transpose(0, 1))[0][-1]))
            return out

    return Net(), (torch.randn(8, 7, 5), LABELS), {}


@case
def volumes() -> Case:
    net = nn.Sequential(
        nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    return net, (torch.randn(8, 2, 6, 6, 6), LABELS), {}


@case
def one_norm_called_four_times() -> Case:
    def forward(self: Small, x: Tensor) -> Any:
        x = self.body[:3](x)
        for _ in range(3):
            x = self.body[2](self.body[1](self.body[3](x)))
        return self.head(x.mean((2, 3)))

    return like_small(forward), images(), {}


@case
def tied_weights() -> Case:
    net = Tokens(dense=True)
    net.head.weight = net.embed.weight
    ids = torch.randint(20, (8, 6))
    return net, (ids, ids), {}


@case
def reparametrized_and_pruned() -> Case:
    net = Small()
    net.body[0] = parametrizations.weight_norm(net.body[0])
    net.head = parametrizations.spectral_norm(net.head)
    prune.l1_unstructured(net.body[3], "weight", 0.5)
    return net, images(), {}


@case
def partly_scripted() -> Case:
    net = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        net.body = torch.jit.script(net.body)
    return net, images(), {}


@case
def bfloat16() -> Case:
    return Small().bfloat16(), images(), {}


@case
def keeps_a_diary() -> Case:
    class Net(Small):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.calls, self.history, self.seen = 0, [torch.zeros(1)], {"inner": [0]}

        def forward(self, x: Tensor) -> Any:
            self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3)).detach()
            self.calls += 1
            self.history.append(x)
            self.history[0].add_(1)
            self.seen["inner"].append(self.calls)
            self.seen["last"] = x
            self.fresh = x
            return super().forward(x)

    return Net(), images(), {}


@case
def makes_a_layer_when_called() -> Case:
    class Net(Small):
        def forward(self, x: Tensor) -> Any:
            if "late" not in self._modules:
                self.late = nn.Linear(5, 5)
            return self.late(super().forward(x))

    return Net(), images(), {}


@case
def checkpointed() -> Case:
    def forward(self: Small, x: Tensor) -> Any:
        return self.head(checkpoint(self.body, x, use_reentrant=False).mean((2, 3)))

    return like_small(forward), images(), {}


@case
def hooked() -> Case:
    net = Small()
    net.body[0].register_forward_hook(lambda module, args, out: out * 2)
    net.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return net, images(), {}


@case
def all_frozen() -> Case:
    return Small().requires_grad_(False), images(), {}


@case
def stops_the_gradient() -> Case:
    return like_small(lambda self, x: self.head(self.body(x).mean((2, 3)).detach())), images(), {}


@case
def compiled() -> Case:
    return torch.compile(Small(), backend="eager"), images(), {}  # type: ignore[return-value]  # a module


@case
def bytes_are_scaled_inside() -> Case:
    net = like_small(lambda self, x: Small.forward(self, x.float() / 127.5 - 1))
    return net, (torch.randint(256, IMAGES, dtype=torch.uint8), LABELS), {}


@case
def sparse_graph() -> Case:
    """The adjacency is a sparse tensor beside the samples; another one is kept as a buffer, one as an attribute."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)
            self.register_buffer("mix", torch.eye(8).to_sparse())
            self.kept = torch.eye(8).to_sparse()

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            self.mix = self.mix * 2
            z = torch.relu(self.norm(torch.sparse.mm(adjacency, self.lift(x))))
            out: Tensor = self.head(torch.sparse.mm(self.kept, z.T).T)
            return out

    adjacency = (torch.rand(20, 20) < 0.2).float().to_sparse()
    return Net(), ((torch.randn(20, 6), adjacency), torch.arange(20) % 5), {}


@case
def draws_from_generators_of_its_own() -> Case:
    class Net(Small):
        def __init__(self) -> None:
            super().__init__()
            self.draw, self.coin, self.dice = torch.Generator(), random.Random(0), {"inner": np.random.default_rng(0)}

        def forward(self, x: Tensor) -> Any:
            noise = torch.randn(x.shape, generator=self.draw) * self.coin.random() * self.dice["inner"].random()
            return super().forward(x + noise / 10)

    return Net(), images(), {}


@case
def list_of_images() -> Case:
    net = like_small(lambda self, x: Small.forward(self, torch.stack(x)))
    return net, (list(torch.randn(IMAGES)), LABELS), {}


@case
def bags_of_ids() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.norm, self.head = nn.EmbeddingBag(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(self.bag(ids, offsets)))
            return out

    return Net(), ((torch.randint(20, (30,)), torch.arange(0, 24, 3)), LABELS), {}


@case
def older_spectral_norm() -> Case:
    """Its hook writes the weight as an attribute before every forward."""
    net = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net.head = nn.utils.spectral_norm(net.head)
    return net, images(), {}


@case
def mapped_over_samples() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(torch.vmap(self.each)(x)))
            return out

    return Net(), (torch.randn(8, 6), LABELS), {}


@case
def buffers_that_grow() -> Case:
    """As observers of quantization do, which are empty until the first batch."""

    class Net(Small):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("largest", torch.empty(0))

        def forward(self, x: Tensor) -> Any:
            self.largest.resize_(3).copy_(x.amax((0, 2, 3)))
            return super().forward(x)

    return Net(), images(), {}


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a network, and the generator, that a look at it must not change."""
    kept: list[Any] = [torch.get_rng_state()]
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        own = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        kept += [path, sorted(vars(module)), _copied(own), list(module._modules), len(module._forward_hooks)]
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        kept += [name, id(t), t.detach().clone(), t.requires_grad, t.grad if t.is_leaf else None]
    return kept


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random | np.random.Generator):
        return repr(value.getstate() if isinstance(value, random.Random) else value.bit_generator.state)
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list | tuple) else value


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, tensors in lists and dicts included."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.to_dense(), b.to_dense())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def not_numbers(profile: Profile) -> list[str]:
    """Numbers that are NaN or infinite although the layer's values are finite."""
    return [
        f"{record.name}.{field.name}"
        for record in profile.records
        for field in fields(record)
        if isinstance(value := getattr(record, field.name), float)
        and not math.isfinite(value)
        and record.nonfinite_share == 0
    ]
