"""Probing while training: the right moments, and a training that does not notice."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerscope import data, nets
from layerscope.errors import MissingExtraError, ProbeError, TrainingError
from layerscope.sources.zoo import import_torchvision
from layerscope.training import MemorySink, fit, lightning_callback, watch

BATCH = data.batch("digits", 16)


def network() -> nn.Module:
    net = nets.build("resnet:blocks=1,width=4", "batch", in_shape=(1, 8, 8))
    net.head = nn.Sequential(nn.Dropout(0.2), net.head)
    return net


def own_loop(net: nn.Module, steps: int) -> list[float]:
    """A loop of somebody else, with a scheduler, an evaluation and gradients over two batches."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for half in (0, 1):
            x, y = data.batch("digits", 16, seed=2 * step + half)
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        other.step()
        net.eval()
        with torch.no_grad():
            net(x)
        net.train()
    return losses


def test_any_loop_is_watched_at_its_own_steps() -> None:
    plain, watched = network(), network()
    expected = own_loop(plain, 7)
    with watch(watched, BATCH, every=3) as seen:
        losses = own_loop(watched, 7)
    assert losses == expected
    for (name, a), (_, b) in zip(plain.state_dict().items(), watched.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert [frame.step for frame in seen] == [0, 3, 6]
    assert seen.step == 7
    assert len(seen) == 3


def test_our_own_loop_is_watched_too_and_comes_out_the_same() -> None:
    plain, watched = network(), network()
    expected = fit(plain, "digits", steps=6, batch_size=16, augment="crop")
    sink = MemorySink()
    with watch(watched, BATCH, every=2, at_start=False, level="light", sinks=[sink]) as seen:
        history = fit(watched, "digits", steps=6, batch_size=16, augment="crop")
    assert history.losses == expected.losses
    assert [step for step, _ in seen.series("loss")] == [2, 4, 6]
    assert sink.series("probe/loss") == seen.series("loss")


def test_a_frame_is_the_network_at_that_moment() -> None:
    net = network()
    with watch(net, BATCH, every=1) as seen:
        own_loop(net, 2)
        again = seen.look()
    assert again.records == seen[-2].profile.records
    assert seen[0].profile.records != seen[1].profile.records
    assert [step for step, _ in seen.series("ms", "stages.0.blocks.0")] == [0, 1, 2, 2]


def own_loop_that_fails(net: nn.Module) -> None:
    own_loop(net, 1)
    raise RuntimeError("stop")


def test_it_ends_with_its_block() -> None:
    net = network()
    seen = watch(net, BATCH, every=1)
    with pytest.raises(RuntimeError, match="stop"), seen:
        own_loop_that_fails(net)
    own_loop(net, 1)
    assert seen.step == 1
    with seen:
        own_loop(net, 1)
    assert [frame.step for frame in seen] == [0, 1, 2]


def test_what_cannot_be_watched() -> None:
    with pytest.raises(TrainingError, match="every=0"):
        watch(network(), BATCH, every=0)
    with pytest.raises(ProbeError), watch(network(), (torch.zeros(4, 7), torch.zeros(4).long())):
        pass
    with watch(network(), BATCH) as seen:
        with pytest.raises(TrainingError, match="no 'cosin'"):
            seen.series("cosin", "stem.act")
        with pytest.raises(TrainingError, match=r"'stem.act2'"):
            seen.series("cosine", "stem.act2")
        with pytest.raises(TrainingError, match="already on"), seen:
            pass


def test_lightning_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(MissingExtraError, match=r"layerscope\[lightning\]"):
        lightning_callback()


@pytest.mark.skipif(find_spec("lightning") is None, reason="Lightning is not installed")
@pytest.mark.filterwarnings("ignore")  # Lightning's own, about its defaults
def test_lightning_trains_the_same_with_the_callback() -> None:
    import_torchvision()  # torchmetrics imports it
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses = network(), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(*callbacks: pl.Callback) -> list[float]:
        torch.manual_seed(0)
        module = Module()
        trainer = pl.Trainer(
            max_steps=5, callbacks=list(callbacks), logger=False, accelerator="cpu", enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        digits = data.load("digits")
        trainer.fit(module, DataLoader(TensorDataset(digits.x, digits.y), batch_size=32, shuffle=True))
        return module.losses

    probe = lightning_callback(every=2)
    assert train(probe) == train()
    assert [frame.step for frame in probe.watch] == [0, 2, 4]
