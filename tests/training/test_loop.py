"""The fit loop against an obvious loop, and what a user may rely on around it."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from layerscope.data import Dataset
from layerscope.errors import DataError, LayerscopeError, ProbeError, SpecError, TrainingError
from layerscope.plain import from_plain, to_plain
from layerscope.training import Callback, Each, History, MemorySink, Run, decay_matrices_only, fit
from layerscope.training.batches import InMemory

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def network(seed: int = 0, *middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *middle, nn.Linear(16, 3))


def test_it_is_the_obvious_loop() -> None:
    """Same order, same losses and same weights, to the bit, as a loop written out by hand."""
    ours, theirs = network(), network()
    history = fit(ours, (X, Y), steps=11, batch_size=16, lr=0.1, momentum=0.9, weight_decay=1e-2, seed=4)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    order = InMemory(Dataset("same", X, Y, 3), 16, seed=4)
    losses, accuracies = [], []
    for step in range(11):
        x, y = order.batch(step)
        optimizer.zero_grad()
        outputs = theirs(x)
        loss = F.cross_entropy(outputs, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append((outputs.argmax(1) == y).float().mean().item())
    assert history.losses == tuple(losses)
    assert history.accuracies == tuple(accuracies)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_it_learns() -> None:
    history = fit(network(), (X, Y), epochs=20, batch_size=15, lr=0.3, eval_data=(X, Y))
    assert history.steps == history.planned == 80
    assert history.finished
    assert history.final_loss < 0.35 * history.losses[0]
    assert history.evaluations[-1].accuracy > 0.9
    assert history.evaluations[-1].step == 80


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    runs = [fit(network(0, nn.Dropout()), (X, Y), steps=6, batch_size=16, lr=0.1, seed=seed) for seed in (1, 1, 2)]
    assert runs[0].losses == runs[1].losses
    assert runs[0].losses != runs[2].losses


def test_it_leaves_the_global_generator_train_flags_and_gradients_as_they_should_be() -> None:
    net = network(0, nn.Dropout(), nn.BatchNorm1d(16))
    net[3].eval()
    flags = [m.training for m in net.modules()]
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    fit(net, (X, Y), steps=3, batch_size=16, eval_data=(X, Y))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [m.training for m in net.modules()] == flags
    assert all(p.grad is None for p in net.parameters())


def test_what_happens_between_steps_cannot_change_the_run() -> None:
    """A probe that draws random numbers in every step changes nothing that the run draws."""
    quiet = fit(network(0, nn.Dropout()), (X, Y), steps=8, batch_size=16)
    disturbed = fit(
        network(0, nn.Dropout()), (X, Y), steps=8, batch_size=16,
        callbacks=[lambda run: torch.rand(run.step)], eval_data=(X, Y), eval_every=3, sinks=[MemorySink()], log_every=1,
    )  # fmt: skip
    assert quiet.losses == disturbed.losses


def test_accumulation_changes_memory_and_nothing_else() -> None:
    """In float64 and without batch statistics, five unequal parts give the gradients of the whole."""
    runs = []
    for parts in (1, 5):
        net = network(0, nn.LayerNorm(16)).double()
        history = fit(net, (X, Y), steps=7, batch_size=16, lr=0.2, accumulate=parts)
        runs.append((history, [p.detach() for p in net.parameters()]))
    (whole, weights), (cut, same) = runs
    assert cut.losses == pytest.approx(whole.losses, rel=1e-12)
    assert cut.accuracies == pytest.approx(whole.accuracies)
    for a, b in zip(weights, same, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_an_epoch_shows_every_sample_once_in_a_new_order() -> None:
    order = InMemory(Dataset("numbers", torch.arange(12.0)[:, None], torch.zeros(12, dtype=torch.int64), 1), 4, seed=0)
    epochs = [torch.cat([order.batch(3 * epoch + i)[0] for i in range(3)]).flatten().tolist() for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    assert [order.ends_epoch(step) for step in range(6)] == [False, False, True] * 2


def test_a_diverging_run_stops_and_says_when() -> None:
    history = fit(network(), (X * 1e3, Y), steps=50, batch_size=16, lr=1e12, momentum=0.0)
    assert history.diverged
    assert not history.finished
    assert history.diverged_at == history.steps - 1 < 49
    assert not torch.isfinite(torch.tensor(history.losses[-1]))
    assert all(torch.isfinite(torch.tensor(history.losses[:-1])))
    assert history.mean_accuracy == pytest.approx(sum(history.accuracies[:-1]) / 50)


def test_a_loss_above_the_limit_counts_as_divergence() -> None:
    history = fit(network(), (X, Y), steps=9, batch_size=16, loss_limit=0.01)
    assert history.diverged_at == 0


def test_an_update_that_breaks_the_network_in_the_last_step_is_noticed() -> None:
    class Break(Callback):
        def on_gradients(self, run: Run) -> None:
            if run.step == 3:
                next(run.model.parameters()).grad.fill_(float("inf"))

    history = fit(network(), (X, Y), steps=4, batch_size=16, callbacks=[Break()], eval_data=(X, Y))
    assert all(torch.isfinite(torch.tensor(history.losses)))
    assert history.diverged_at == 3
    assert history.evaluations == ()


def test_callbacks_see_every_moment_in_order() -> None:
    seen: list[tuple[str, int, int]] = []

    class Recorder(Callback):
        def on_start(self, run: Run) -> None:
            seen.append(("start", run.step, run.epoch))

        def on_gradients(self, run: Run) -> None:
            assert all(p.grad is not None for p in run.model.parameters())
            seen.append(("gradients", run.step, run.epoch))

        def on_step(self, run: Run) -> None:
            assert run.loss > 0
            assert 0 <= run.metrics["accuracy"] <= 1
            seen.append(("step", run.step, run.epoch))

        def on_epoch(self, run: Run) -> None:
            seen.append(("epoch", run.step, run.epoch))

        def on_end(self, run: Run) -> None:
            seen.append(("end", run.step, run.epoch))

    fit(network(), (X, Y), epochs=1, batch_size=30, callbacks=[Recorder()])
    assert seen == [
        ("start", 0, 0), ("gradients", 0, 0), ("step", 1, 0), ("gradients", 1, 0), ("step", 2, 0),
        ("epoch", 2, 1), ("end", 2, 1),
    ]  # fmt: skip


def test_a_callback_can_stop_the_run_and_change_the_weights() -> None:
    def project(run: Run) -> None:
        with torch.no_grad():
            run.model[0].weight /= run.model[0].weight.norm(dim=1, keepdim=True)

    net = network()
    history = fit(net, (X, Y), steps=20, batch_size=16, callbacks=[project, Each(lambda run: run.stop(), every=5)])
    assert history.steps == 5
    assert not history.finished
    torch.testing.assert_close(net[0].weight.norm(dim=1), torch.ones(16))


def test_a_step_function_of_ones_own() -> None:
    def step(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
        outputs = model(batch["inputs"])
        return outputs.square().mean(), {"largest": outputs.abs().max(), "constant": 2.0}

    batches = [{"inputs": X[:20], "name": "a"}, {"inputs": X[20:50], "name": "b"}]
    history = fit(network(), batches, epochs=3, step_fn=step, lr=0.01)
    assert history.steps == 6
    assert set(history.metrics) == {"largest", "constant"}
    assert history.metrics["constant"] == (2.0,) * 6
    assert history.losses[-1] < history.losses[0]
    assert history.mean_accuracy is None


def test_a_metric_that_comes_late_is_nan_before() -> None:
    calls = []

    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        calls.append(1)
        return F.cross_entropy(model(batch[0]), batch[1]), {"late": 1.0} if len(calls) > 2 else {}

    late = fit(network(), (X, Y), steps=4, batch_size=16, step_fn=step).metrics["late"]
    assert [value == value for value in late] == [False, False, True, True]


def test_parameter_groups() -> None:
    net = network(0, nn.LayerNorm(16))
    norm = [p.detach().clone() for p in net[2].parameters()]
    fit(net, (X, Y), steps=1, batch_size=16, lr=0.0, momentum=0.0, groups=decay_matrices_only, weight_decay=0.5)
    assert all(torch.equal(a, b) for a, b in zip(norm, net[2].parameters(), strict=True))
    frozen = network()
    frozen[0].requires_grad_(False)
    groups = decay_matrices_only(frozen)
    assert [len(group["params"]) for group in groups] == [1, 1]

    def two_rates(model: nn.Module) -> list[dict[str, object]]:
        return [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}]

    seen: list[list[float]] = []
    callback = Each(lambda run: seen.append([group["lr"] for group in run.optimizer.param_groups]))
    fit(network(), (X, Y), steps=2, batch_size=16, lr=0.1, groups=two_rates, schedule="cosine", callbacks=[callback])
    assert seen == [[0.5, 0.1], [pytest.approx(0.25), pytest.approx(0.05)]]


def test_gradients_are_clipped_together() -> None:
    norms = []

    class Norm(Callback):
        def on_gradients(self, run: Run) -> None:
            norms.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm().item())

    fit(network(), (X * 100, Y), steps=3, batch_size=16, lr=1e-4, clip=0.5, callbacks=[Norm()])
    assert norms == pytest.approx([0.5] * 3, rel=1e-4)


def test_bfloat16_and_channels_last() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    seen = []
    net[0].register_forward_hook(
        lambda m, i, o: seen.append((o.dtype, i[0].is_contiguous(memory_format=torch.channels_last)))
    )
    images = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    history = fit(net, (images, Y[:32]), steps=2, batch_size=8, amp="bfloat16", channels_last=True)
    assert seen == [(torch.bfloat16, True)] * 2
    assert net[0].weight.dtype == torch.float32
    assert history.finished


def test_images_are_augmented_anew_in_every_step() -> None:
    seen = []

    def note(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(torch.rand(1, generator=generator).item())
        return x + 1

    fit(network(), (X, Y), steps=4, batch_size=16, augment=note)
    assert len(set(seen)) == 4


def test_a_history_is_plain_and_round_trips_through_json() -> None:
    history = fit(network(), (X, Y), steps=3, batch_size=16, eval_data=(X, Y))
    assert from_plain(History, json.loads(json.dumps(to_plain(history)))) == history
    assert history.settings["lr"] == "0.1"
    assert repr(history).startswith("History(3 of 3 steps, loss ")
    assert "diverged at step 0" in repr(fit(network(), (X, Y), steps=3, batch_size=16, loss_limit=0.0))
    assert len(history.lrs) == 3
    assert history.batch_size == 16
    assert history.seconds > 0


def test_a_data_loader_in_place_of_tensors() -> None:
    torch.manual_seed(3)
    loader = DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True)
    first, second = (fit(network(), loader, epochs=2, lr=0.1, seed=5) for _ in range(2))
    assert first.steps == 6
    assert first.losses == second.losses
    assert first.batch_size is None
    assert fit(network(), loader, epochs=2, lr=0.1, seed=6).losses != first.losses


def test_a_loader_with_a_generator_of_its_own_is_seeded_too() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True, generator=torch.Generator())
    assert fit(network(), loader, steps=7, seed=5).losses == fit(network(), loader, steps=7, seed=5).losses


def test_transforms_that_draw_from_numpy_and_python_repeat_too() -> None:
    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            return X[i] + np.random.normal() + random.random() + torch.randn(()), Y[i]  # noqa: NPY002

    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    runs = [fit(network(), DataLoader(Noisy(), batch_size=10, shuffle=True), steps=6) for _ in range(2)]
    assert runs[0].losses == runs[1].losses
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_an_endless_stream() -> None:
    def forever():
        while True:
            yield X[:20], Y[:20]

    assert fit(network(), forever(), steps=9).finished


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    fit(network(), (X, Y), steps=3, batch_size=16, progress=True)
    fit(network(), (X, Y), steps=3, batch_size=16)
    assert capsys.readouterr().out == ""


def test_sinks_get_training_and_evaluation() -> None:
    sink = MemorySink()
    history = fit(network(), (X, Y), steps=6, batch_size=16, sinks=[sink], log_every=2, eval_data=(X, Y), eval_every=3)
    assert [step for step, _ in sink.series("loss")] == [2, 4, 6]
    assert [value for _, value in sink.series("loss")] == [history.losses[i] for i in (1, 3, 5)]
    assert [step for step, _ in sink.series("eval/accuracy")] == [3, 6]
    assert set(sink.rows[0][1]) == {"loss", "lr", "accuracy"}


ONE_BATCH = [(X, Y)]


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({}, TrainingError, "exactly one of steps"),
        ({"steps": 2, "epochs": 2}, TrainingError, "exactly one of steps"),
        ({"steps": 0}, TrainingError, "steps=0"),
        ({"steps": 2.0}, TrainingError, "steps=2.0"),
        ({"steps": 2, "batch_size": 61}, TrainingError, "60 samples; lower it"),
        ({"steps": 2, "lr": -0.1}, TrainingError, "lr=-0.1"),
        ({"steps": 2, "lr": float("nan")}, TrainingError, "lr=nan"),
        ({"steps": 2, "lr": "fast"}, TrainingError, "lr='fast'"),
        ({"steps": 2, "warmup": 2}, TrainingError, "leaves none of the 2 steps"),
        ({"steps": 2, "clip": 0}, TrainingError, "remove every gradient"),
        ({"steps": 2, "amp": "float32"}, TrainingError, "float16"),
        ({"steps": 2, "seed": 1.5}, TrainingError, "seed=1.5"),
        ({"steps": 2, "log_every": 0}, TrainingError, "log_every=0"),
        ({"steps": 2, "checkpoint_every": -1}, TrainingError, "checkpoint_every=-1"),
        ({"steps": 2, "accumulate": 40, "batch_size": 16}, TrainingError, "into that many parts"),
        ({"steps": 2, "accumulate": 2, "train": [{"x": X}]}, TrainingError, "accumulate needs batches"),
        ({"steps": 2, "optimizer": "sdg"}, SpecError, "'sgd'"),
        ({"steps": 2, "optimizer": "adamw:beta=0.9"}, SpecError, "beta1"),
        ({"steps": 2, "optimizer": "sgd:nesterov=1"}, SpecError, "true or false"),
        ({"steps": 2, "schedule": "cosin"}, SpecError, "cosine"),
        ({"steps": 2, "loss": "crossentropy"}, SpecError, "cross_entropy"),
        ({"steps": 2, "augment": "flipp"}, SpecError, "flip"),
        ({"steps": 2, "loss": "mse", "step_fn": lambda m, b: m(b[0]).mean()}, TrainingError, "not both"),
        ({"steps": 2, "device": "nowhere"}, TrainingError, "nowhere"),
        ({"steps": 2, "step_fn": lambda m, b: 1.0}, TrainingError, "a float"),
        ({"steps": 2, "step_fn": lambda m, b: m(b[0])}, TrainingError, r"expected a tensor of one number"),
        ({"steps": 2, "step_fn": lambda m, b: m(b[0]).mean().detach()}, TrainingError, "depends on trainable"),
        ({"steps": 2, "train": 5}, TrainingError, "int is nothing to train on"),
        ({"steps": 2, "train": ONE_BATCH, "batch_size": 4}, TrainingError, "data in memory"),
        ({"epochs": 2, "train": iter(ONE_BATCH)}, TrainingError, "give steps="),
        ({"steps": 2, "train": iter(ONE_BATCH)}, TrainingError, "ran out after 1 batches"),
        ({"steps": 2, "train": []}, TrainingError, "ran out after 0"),
        ({"steps": 2, "train": [X, Y, X]}, TrainingError, "expected \\(x, y\\)"),
        ({"steps": 2, "train": (X.long(), Y)}, TrainingError, r"int64, and this network .* pass x.float\(\)"),
        ({"steps": 2, "train": (X.int(), Y)}, DataError, "int32 values"),
        ({"steps": 2, "train": "digit"}, DataError, "digits"),
        ({"steps": 2, "train": (X[:, :5], Y)}, TrainingError, r"step 0 failed on \(float32 \(60, 5\)"),
        ({"steps": 2, "train": (X, Y + 1)}, TrainingError, "step 0 failed"),
        ({"steps": 2, "eval_data": 5}, TrainingError, "nothing to evaluate on"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_in_one_sentence(
    arguments: dict[str, object], kind: type[LayerscopeError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        fit(network(), **{"train": (X, Y), **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(TrainingError, match="cuda"):
        fit(network(), (X, Y), steps=1, device="cuda")


def test_frozen_networks_and_strange_outputs() -> None:
    with pytest.raises(TrainingError, match="requires_grad"):
        fit(network().requires_grad_(False), (X, Y), steps=1)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.net(x)}

    assert fit(Two(), (X, Y), steps=2).losses == fit(network(), (X, Y), steps=2).losses
    assert fit(Two(), (X, Y), steps=2, output="logits", eval_data=(X, Y)).evaluations[0].samples == 60
    with pytest.raises(ProbeError, match="logits"):
        fit(Two(), (X, Y), steps=1, output="logit")


def test_a_failing_step_restores_flags_and_generators() -> None:
    net = network(0, nn.Dropout()).eval()
    before = torch.random.get_rng_state()
    with pytest.raises(TrainingError):
        fit(net, (X, Y + 5), steps=1)
    assert not any(m.training for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), before)
