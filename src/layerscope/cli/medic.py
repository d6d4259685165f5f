"""``layerscope medic clone|attack|evaluate|compare``: remove a backdoor from a checkpoint, and judge the removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from layerscope.cli.checkpoints import load_into

if TYPE_CHECKING:
    from torch import nn

    from layerscope.data import Dataset
    from layerscope.methods.medic.attacks import Trigger

Network = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
Checkpoint = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
Attack = Literal["badnet", "blend", "filter", "polygon", "reflection", "sinusoid", "warp"]


def clone(
    network: Network,
    checkpoint: Checkpoint,
    data: str = "digits",
    samples: int | None = None,
    clone_weight: float = 3.0,
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-2,
    taps: Literal["late", "conv", "norm", "conv+norm", "all"] = "late",
    importance: Literal["signed", "magnitude", "activation", "impact", "uniform"] = "signed",
    preset: Literal["official"] | None = None,
    augment: Literal["flip", "crop", "flip-crop"] | None = None,
    seed: int = 0,
    device: str = "cpu",
    keep: Path | None = None,
    save: Path | None = None,
    html: Path | None = None,
    json: Path | None = None,
) -> None:
    """Clone what a suspicious network does on clean images into a fresh one.

    Args:
        network: A reference net, or file.py:factory or package.module:factory that builds the network.
        checkpoint: Its weights, a state dict as .pt or .safetensors.
        data: The clean data set (its training split); see `layerscope data`.
        samples: Use only so many of them, drawn with the seed.
        clone_weight: How much the teacher's activations count beside the labels.
        epochs: Passes over the clean data; by default as many as make about 2,000 steps.
        batch_size: Samples of one step.
        lr: Of Adam.
        taps: Which layers are compared.
        importance: What makes a neuron matter.
        preset: Use the released settings instead.
        augment: Random changes that both networks see.
        seed: Of the fresh weights, the order and the samples.
        device: Where to compute, such as cuda.
        keep: Keep the run in this file; the same command goes on from it.
        save: Write the clone's weights here.
        html: Write the report as one page.
        json: Write the report's numbers.
    """
    from layerscope import report
    from layerscope.methods import medic

    clean = _data(data, "train", samples, seed)
    model = _loaded(network, checkpoint, clean, device)
    factory = _factory(model, network, clean, seed)
    with _kept(keep):
        cleaned = medic.clone(
            model, clean, factory=factory, clone_weight=clone_weight, epochs=epochs, batch_size=batch_size, lr=lr,
            taps=taps, importance=importance, preset=preset, augment=augment, seed=seed, checkpoint=keep,
        )  # fmt: skip
    report.print_result(cleaned.report)
    _written(cleaned.model, save)
    if html is not None:
        print(f"page: {cleaned.report.to_html(html)}")
    if json is not None:
        print(f"numbers: {cleaned.report.to_json(json)}")


def attack(
    network: Network,
    save: Path,
    data: str = "digits",
    trigger: Attack = "badnet",
    target: int = 0,
    rate: float = 0.1,
    mode: Literal["dirty", "clean", "noise"] = "dirty",
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 0.05,
    augment: Literal["flip", "crop", "flip-crop"] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Train a network of your own on poisoned data, to measure how well a removal works. For that only.

    Args:
        network: A reference net or a factory, as for `clone`.
        save: Write its weights here.
        data: A data set, see `layerscope data`.
        trigger: Which published trigger.
        target: The class it leads to.
        rate: Share of the training data that carries it (of the target class in mode clean).
        mode: Relabel (dirty), leave labels (clean), or relabel beside disturbed samples (noise, for warp).
        epochs: Passes over the data.
        batch_size: Samples of one step.
        lr: Of SGD, cosine.
        augment: Random changes, before the trigger.
        seed: Of weights, order and poison.
        device: Where to train, such as cuda.
    """
    from layerscope.methods import medic
    from layerscope.methods.medic import attacks

    train = _data(data, "train", None, seed)
    model = _built(network, train, seed)
    poisoned = attacks.Poisoned(train, _trigger(trigger), target=target, rate=rate, mode=mode, seed=seed)
    attacks.train_poisoned(
        model, poisoned, epochs=epochs, batch_size=batch_size, lr=lr, schedule="cosine", weight_decay=5e-4,
        augment=augment, seed=seed, device=device,
    )  # fmt: skip
    print(medic.evaluate(model, _data(data, "test", None, seed), poisoned.trigger, target))
    _written(model, save)


def evaluate(
    network: Network,
    checkpoint: Checkpoint,
    data: str = "digits",
    trigger: Attack = "badnet",
    target: int = 0,
    device: str = "cpu",
) -> None:
    """Clean accuracy, attack success and recovered accuracy of a checkpoint under one trigger.

    Args:
        network: A reference net or a factory, as for `clone`.
        checkpoint: Its weights.
        data: A data set; its test split is used.
        trigger: Which published trigger.
        target: The class it is thought to lead to.
        device: Where to compute, such as cuda.
    """
    from layerscope.methods import medic

    test = _data(data, "test", None, 0)
    print(medic.evaluate(_loaded(network, checkpoint, test, device), test, _trigger(trigger), target))
    print("evidence about this trigger only; compare with a network that was trained without poison")


def compare(
    network: Network,
    checkpoint: Checkpoint,
    data: str = "digits",
    samples: int | None = None,
    defence: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    trigger: Annotated[tuple[Attack, ...], tyro.conf.UseAppendAction] = (),
    target: int = 0,
    seeds: int = 1,
    augment: Literal["flip", "crop", "flip-crop"] | None = None,
    device: str = "cpu",
    keep: Path | None = None,
    html: Path | None = None,
    csv: Path | None = None,
    json: Path | None = None,
) -> None:
    """Several removals on one checkpoint, against the floor of a network without poison.

    Args:
        network: A reference net or a factory, as for `clone`.
        checkpoint: Its weights.
        data: The clean data set; its test split judges.
        samples: Use only so many clean training samples.
        defence: Such as medic or "fine-tune lr=0.03"; repeat for more. Left out: all.
        trigger: Which published triggers; repeat for more. Left out: badnet.
        target: The class they are thought to lead to.
        seeds: Runs of every defence.
        augment: Random changes in every defence's training.
        device: Where to compute, such as cuda.
        keep: Keep every finished run in this file; the same command goes on from it.
        html: Write the table as one page.
        csv: Write one line for every run.
        json: Write every number.
    """
    from layerscope import report
    from layerscope.methods import medic
    from layerscope.methods.medic import baselines
    from layerscope.methods.medic.comparing import chosen

    clean, test = _data(data, "train", samples, 0), _data(data, "test", None, 0)
    model = _loaded(network, checkpoint, clean, device)
    factory = _factory(model, network, clean, 0)
    defences = chosen(defence, baselines.standard(augment, factory=factory))
    threats = {str(t): medic.Threat(t, target) for t in map(_trigger, trigger or ("badnet",))}
    floor = baselines.Scratch(augment=augment, factory=factory)
    with _kept(keep):
        table = medic.compare(defences, model, clean, test, threats, seeds=tuple(range(seeds)), floor=floor, keep=keep)
    report.print_result(table)
    for path, write in ((html, table.to_html), (csv, table.to_csv), (json, table.to_json)):
        if path is not None:
            print(f"written: {write(path)}")


@contextmanager
def _kept(path: Path | None) -> Iterator[None]:
    """Says on Ctrl-C where what is finished lies."""
    try:
        yield
    except KeyboardInterrupt:
        if path is not None:
            print(f"\nstopped; what is finished is in {path}, and the same command goes on from there")
        raise


def _trigger(name: Attack) -> Trigger:
    from layerscope.methods.medic import attacks

    made: Trigger = getattr(attacks, {"badnet": "BadNet"}.get(name, name.capitalize()))()
    return made


def _data(name: str, split: str, samples: int | None, seed: int) -> Dataset:
    import torch

    from layerscope.data import load
    from layerscope.errors import DataError

    data = load(name, split)
    if samples is None:
        return data
    if not 0 < samples <= len(data):
        raise DataError(f"--samples {samples}: {name} has {len(data)}")
    return data.take(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:samples])


def _built(network: str, data: Dataset, seed: int) -> nn.Module:
    from layerscope import sources

    return sources.build(network, in_shape=data.in_shape, classes=data.classes, seed=seed).module


def _factory(model: nn.Module, network: str, data: Dataset, seed: int) -> Callable[[], nn.Module] | None:
    """None where a copy of the network can be drawn anew, otherwise its own factory, seeded apart from the teacher."""
    from layerscope.methods import medic
    from layerscope.training.seeds import derive

    try:
        medic.fresh_like(model, seed)
    except medic.MedicError:
        return lambda: _built(network, data, derive(seed, "layerscope medic") % 2**31)
    return None


def _loaded(network: str, checkpoint: Path, data: Dataset, device: str) -> nn.Module:
    from layerscope.training.settings import device_of

    model = _built(network, data, 0)
    load_into(model, checkpoint, network)
    return model.to(device_of(model, device)).eval()


def _written(model: nn.Module, path: Path | None) -> None:
    import torch

    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors takes neither shared nor strided memory
    whole = torch.contiguous_format
    state = {k: v.detach().cpu().clone(memory_format=whole) for k, v in model.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
    print(f"weights: {path}")


COMMANDS = {"clone": clone, "attack": attack, "evaluate": evaluate, "compare": compare}
