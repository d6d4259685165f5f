"""The product's main job: one network, several normalization choices, one verdict each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from layerscope import data as datasets
from layerscope import inputs, norms, probe, sources, verdict
from layerscope.errors import LayerscopeError, SpecError, SwapError
from layerscope.probe.records import Level, Profile
from layerscope.spec import Spec
from layerscope.verdict.types import Choice, Comparison, MicroTrain, Verdict

if TYPE_CHECKING:
    from torch import nn

#: The choices that are compared when none are named: every family of the zoo that a convolutional net can take.
STANDARD_NORMS = ("none", "batch", "layer", "instance", "group:size=8", "frn", "evonorm-s0", "weight", "sws")

AS_IS = "as is"

#: Similarity between samples is not worth stating on fewer.
FEWEST_SAMPLES = 32
MOST_SEEDS = 1000


def compare(
    source: str | nn.Module | Callable[..., nn.Module],
    norm: str | Sequence[str] = STANDARD_NORMS,
    data: Any = "digits",
    *,
    batch_size: int = 32,
    chunks: int | None = None,
    seeds: int | Iterable[int] = 1,
    classes: int | None = None,
    level: Level = "standard",
    loss: Any = "cross_entropy",
    output: Any = None,
    micro_steps: int = 0,
    lr: float = 0.1,
    device: str | None = None,
    progress: bool = False,
) -> Comparison:
    """Which normalization layer will train in this network, which will not, and why.

    For every norm and seed: build the network, run one forward and backward pass over real data in training mode, and
    judge the numbers. Nothing is trained. The choices that cannot be built get the verdict ``unknown`` with the reason.

    Args:
        source: ``"resnet56"``, ``"timm:resnet18"``, ``"torchvision:resnet18"``, ``"file.py:factory"``,
            ``"pkg.mod:factory"``, a factory, or a module; layers of a module are exchanged on a copy.
        norm: one or several norm specs (``"group:size=8"``); ``"as is"`` leaves the network alone.
        data: a data set's name, a ``Dataset``, samples ``(x, y)``, a torch ``Dataset``, an iterable of ``(x, y)`` such
            as a ``DataLoader``, or ``"file.py:function"`` that returns one of these. A network with several inputs
            takes ``x`` as a tuple or a dict (see ``layerscope.profile``).
        batch_size: the batch size that you will train with: what BatchNorm sees.
        chunks: batches of that size to average over. None: as many as make 32 samples, or as the data has.
        seeds: how many seeds (0, 1, ...), or which ones. A module object has one: its own weights.
        classes: number of outputs for networks built by name; taken from the data when left out.
        level: ``light``, ``standard`` or ``deep`` (see ``layerscope.profile``).
        loss: see ``layerscope.profile``.
        output: which output of a network that returns several (see ``layerscope.profile``).
        micro_steps: also train a copy for so many real steps (10 to 20 suffice) and let the verdict see them.
        lr: the learning rate of those steps (SGD with momentum 0.9).
        device: where to probe, such as ``"cuda"``. None: where the network is.
        progress: show a progress bar when on a terminal.

    Returns:
        The comparison: print it, show it in a notebook, or ``.to_html(path)``.

    Raises:
        SpecError: a norm spec that is unknown or ambiguous.
        SourceError, DataError: a network or data set that cannot be had.
        ProbeError: the network cannot be run on the data.

    Source: Lubana, Dick, Tanaka, "Beyond BatchNorm", NeurIPS 2021 (arXiv 2106.05956).
    """
    started = time.perf_counter()
    wanted = _checked(norm)
    seed_list = _seeds(seeds, source)
    _whole(batch_size=batch_size, chunks=chunks, classes=classes, micro_steps=micro_steps)
    if device is not None:
        probe.check_device(device)
    given, data = data, sources.data_from(data)
    x, y, name, found_classes = _samples(data, batch_size, chunks)
    main = inputs.main(x)
    samples = inputs.count(x, y)
    shape = inputs.shape_of_one(x, samples)
    if main is not None and not inputs.is_even(x, samples):
        batch_size = samples  # a graph, a list of images: one whole that cannot be cut
    label = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
    choices: list[Choice] = []
    errors: list[LayerscopeError] = []
    with _progress(len(wanted) * len(seed_list), f"probing {label}", progress) as step:
        for spec in wanted:
            profiles: list[Profile] = []
            micro: list[MicroTrain] = []
            notes: tuple[str, ...] = ()
            try:
                for seed in seed_list:
                    step(f"{spec}, seed {seed}")
                    built = sources.build(
                        source, None if spec == AS_IS else spec, in_shape=shape or None,
                        classes=classes or found_classes, seed=seed, example=_few(x, samples),
                    )  # fmt: skip
                    _refuse_nothing_done(built)
                    label, notes = built.label, tuple(built.notes)
                    module = _on(device, built.module, source)
                    profile = probe.profile(
                        module, (x, y), level=level, loss=loss,
                        batch_size=batch_size, output=output, seed=seed, source=label, norm=spec,
                        batch_noise=level != "light",
                    )  # fmt: skip
                    profiles.append(profile)
                    if micro_steps:
                        micro.append(
                            verdict.real_steps(
                                module, (x, y) if isinstance(data, Iterator) else data, lr=lr, steps=micro_steps,
                                batch_size=batch_size, loss=loss, output=output, seed=seed,
                            )
                        )  # fmt: skip
            except LayerscopeError as error:
                # One norm that this network cannot take (1x1 maps, indivisible channels) must not cost the others.
                errors.append(error)
                choices.append(Choice(spec, Verdict.unknown(str(error)), tuple(profiles)))
                continue
            notes += tuple(dict.fromkeys(w for p in profiles for w in p.warnings))
            choices.append(Choice(spec, verdict.judge(profiles, micro=micro), tuple(profiles), notes))
    if len(errors) == len(choices):
        raise errors[0]
    return Comparison(
        source=label,
        data=given if isinstance(given, str) else name,
        batch_size=batch_size,
        seeds=tuple(seed_list),
        in_shape=shape,
        choices=tuple(choices),
        seconds=time.perf_counter() - started,
        versions=next(c.profiles[0].versions for c in choices if c.profiles),
        command=_command(source, wanted, given, batch_size, len(seed_list)),
    )


def diagnose(source: str | nn.Module | Callable[..., nn.Module], data: Any = "digits", **options: Any) -> Comparison:
    """One network as it is, no layer exchanged: where its activations or gradients go wrong, and what to do.

    Takes the arguments of :func:`compare` except ``norm``.
    """
    return compare(source, AS_IS, data, **options)


def _checked(norm: str | Sequence[str]) -> list[str]:
    """The specs in their canonical spelling, checked before any work is done."""
    wanted = list(norm) if isinstance(norm, Iterable) and not isinstance(norm, str) else [norm]
    if not wanted:
        raise SpecError("no norm to compare; name at least one, such as  batch  or  group:size=8")
    specs = [AS_IS if spec == AS_IS else str(norms.parse(spec)) for spec in wanted]
    return list(dict.fromkeys(specs))


def _seeds(seeds: int | Iterable[int], source: Any) -> list[int]:
    """The seeds, each once; one for a module, which has the weights that it has."""
    if isinstance(seeds, int):
        if not 1 <= seeds <= MOST_SEEDS:
            raise LayerscopeError(f"seeds must be at least 1 and at most {MOST_SEEDS}; got {seeds}")
        found = list(range(seeds))
    else:
        found = list(dict.fromkeys(seeds)) if isinstance(seeds, Iterable) else []
        if not found or not all(isinstance(seed, int) for seed in found):
            raise LayerscopeError(f"seeds is how many seeds, or which ones as whole numbers; got {seeds!r}")
    is_module = hasattr(source, "forward") and not isinstance(source, type)
    return found[:1] if is_module else found


def _refuse_nothing_done(built: sources.Built) -> None:
    """A verdict on the network as it is must not stand beside the name of a norm that it does not have.

    Raises:
        SwapError: no norm was exchanged, and not because all of them are what is asked for.
    """
    plan = built.plan
    if plan is None or plan.swapped or (plan.sites and not plan.refused):
        return
    if plan.refused:
        first = plan.refused[0]
        raise SwapError(
            f"none of the {len(plan.sites)} norms can become {plan.spec}, such as {first.path!r}: {first.refused}"
        )
    if plan.spec != "none":
        raise SwapError(
            f"{built.label} has no norm module in whose place {plan.spec} could stand: look at it 'as is', or let the "
            "function that makes it take norm="
        )


def _whole(**numbers: int | None) -> None:
    for name, value in numbers.items():
        least = 0 if name == "micro_steps" else 1
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise LayerscopeError(f"{name} must be a whole number of at least {least}; got {value!r}")


def _samples(data: Any, batch_size: int, chunks: int | None) -> tuple[Any, Any, str, int]:
    """Samples for the probe, what they are called, and how many classes they have."""
    size = batch_size * (chunks or -(-FEWEST_SAMPLES // batch_size))
    at_least = size if chunks else batch_size
    if isinstance(data, str | Spec):
        data = datasets.load(data)
    if isinstance(data, datasets.Dataset):
        x, y = datasets.batch(data, size, seed=0, at_least=at_least)
        return x, y, data.name, max(data.classes, 2)
    x, y = datasets.gather(data, size, at_least=at_least)
    name = getattr(data, "name", None)
    return x, y, name if isinstance(name, str) else "your data", _classes(y)


def _classes(y: Any) -> int:
    """One more than the largest label, two or more; as for digits where there are no labels."""
    labels = inputs.main(y)
    if labels is None or labels.is_floating_point() or not labels.numel():
        return 10
    return max(int(labels.max()) + 1, 2)


def _few(x: Any, samples: int) -> Any:
    """Two samples of it, or all where they cannot be picked."""
    return inputs.pick(x, slice(2)) if inputs.is_even(x, samples) else x


def _on(device: str | None, module: nn.Module, source: Any) -> nn.Module:
    """The network on the device; the caller's own module stays where it is."""
    if device is None:
        return module
    is_callers = module is source or module is getattr(source, "_orig_mod", None)
    return (copy.deepcopy(module) if is_callers else module).to(device)


def _progress(total: int, label: str, wanted: bool) -> Any:
    if not wanted:
        return nullcontext(lambda text: None)
    from layerscope import report

    return report.progress(total, label)


def _command(source: Any, wanted: Sequence[str], data: Any, batch_size: int, seeds: int) -> str:
    if not isinstance(source, str) or not isinstance(data, str):
        return ""
    head = f"layerscope diagnose {source}" if list(wanted) == [AS_IS] else f"layerscope compare {source}"
    chosen = "" if list(wanted) == [AS_IS] else "".join(f" --norm {spec}" for spec in wanted)
    return f"{head}{chosen} --data {data} --batch-size {batch_size} --seeds {seeds}"
