"""Interrupted and resumed, or killed and resumed, a run ends with the same bits as one that ran through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerscope.errors import TrainingError
from layerscope.training import Callback, History, Run, fit

X = torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3
STEPS = 13


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    )


def train(net: nn.Module, path: Path | None, *, train=(X, Y), callbacks=(), **changed: object) -> History:
    """Everything that has a state is on: momentum, batch statistics, dropout, augmentation, a schedule."""
    arguments = {
        "steps": STEPS, "batch_size": 16, "optimizer": "adamw", "lr": 0.01, "schedule": "onecycle",
        "augment": "flip-crop", "seed": 3, "checkpoint": path, "checkpoint_every": 2,
        "eval_data": (X, Y), "eval_every": 4,
    }  # fmt: skip
    if train is not None and not isinstance(train, tuple):
        del arguments["batch_size"]
    return fit(net, train, callbacks=callbacks, **(arguments | changed))


def assert_same(one: tuple[History, nn.Module], other: tuple[History, nn.Module]) -> None:
    assert one[0].losses == other[0].losses
    assert one[0].metrics == other[0].metrics
    assert one[0].lrs == other[0].lrs
    assert one[0].evaluations == other[0].evaluations
    for (name, a), (_, b) in zip(one[1].state_dict().items(), other[1].state_dict().items(), strict=True):
        assert torch.equal(a, b), name


class Fail(Callback):
    """Stands for a crash in the middle of the run."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, run: Run) -> None:
        if run.step == self.at:
            raise RuntimeError("crash")


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)


@pytest.mark.parametrize("at", [1, 2, 5, 12])
@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_a_crash_and_a_resume_change_nothing(tmp_path: Path, at: int, kind: str) -> None:
    source = (X, Y) if kind == "tensors" else loader()
    whole = network()
    expected = train(whole, None, train=source, callbacks=[Callback()])
    path = tmp_path / "run.pt"
    with pytest.raises(RuntimeError, match="crash"):
        train(network(), path, train=source, callbacks=[Fail(at)])
    assert path.exists() == (at > 2)
    torch.manual_seed(99)
    again = network(seed=0 if at <= 2 else 8)  # a checkpoint brings the weights, so the new ones do not matter
    resumed = train(again, path, train=source, callbacks=[Callback()])
    assert_same((resumed, again), (expected, whole))


def test_ctrl_c_finishes_the_step_and_writes_the_run(tmp_path: Path) -> None:
    class Press(Callback):
        def on_gradients(self, run: Run) -> None:
            if run.step == 6:
                os.kill(os.getpid(), signal.SIGINT)

    whole, path = network(), tmp_path / "run.pt"
    expected = train(whole, None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(network(), path, callbacks=[Press()], checkpoint_every=100)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(path)["step"] == 7
    again = network(seed=8)
    assert_same((train(again, path, callbacks=[Callback()], checkpoint_every=100), again), (expected, whole))


def test_without_a_checkpoint_ctrl_c_stops_at_once() -> None:
    class Press(Callback):
        def on_gradients(self, run: Run) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(network(), None, callbacks=[Press()])


def test_a_killed_process_loses_nothing_but_time(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, torch
            from layerscope import nets
            from layerscope.training import Each, fit

            path, kill_at, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
            torch.set_num_threads(1)
            net = nets.build("resnet:blocks=1,width=4", "batch", in_shape=(1, 8, 8))

            def kill(run):
                if run.step == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            history = fit(net, "digits", steps=20, batch_size=8, lr=0.1, augment="crop", schedule="cosine",
                          checkpoint=path, checkpoint_every=3, callbacks=[Each(kill)])
            torch.save({"losses": history.losses, "state": net.state_dict()}, out)
            """
        )
    )

    def run(path: str, kill_at: int, out: str) -> int:
        command = [sys.executable, str(script), str(tmp_path / path), str(kill_at), str(tmp_path / out)]
        return subprocess.run(command, check=False).returncode

    assert run("a", -1, "whole") == 0
    assert run("b", 8, "cut") == -signal.SIGKILL
    assert run("b", -1, "resumed") == 0
    whole, resumed = (torch.load(tmp_path / name) for name in ("whole", "resumed"))
    assert whole["losses"] == resumed["losses"]
    assert all(torch.equal(whole["state"][k], resumed["state"][k]) for k in whole["state"])


def test_a_finished_run_is_read_and_not_repeated(tmp_path: Path) -> None:
    path, net = tmp_path / "run.pt", network()
    first = train(net, path)
    again = network(seed=8)
    second = train(again, path)
    assert_same((first, net), (second, again))
    assert second.seconds > first.seconds / 2


def test_a_diverged_run_stays_diverged(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    first = train(network(), path, optimizer="sgd", lr=1e30)
    assert first.diverged
    second = train(network(), path, optimizer="sgd", lr=1e30)
    assert (second.diverged_at, second.steps) == (first.diverged_at, first.steps)


def test_callbacks_and_step_functions_keep_their_state(tmp_path: Path) -> None:
    class Count(Callback):
        def __init__(self) -> None:
            self.count = 0

        def on_step(self, run: Run) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    class Mean:
        """A loss with memory: the mean output so far is pulled to zero."""

        def __init__(self) -> None:
            self.mean = torch.zeros(3)

        def __call__(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            outputs = model(batch[0])
            self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean(0)
            return nn.functional.cross_entropy(outputs, batch[1]) + (outputs * self.mean).mean()

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"mean": self.mean}

        def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
            self.mean = state["mean"]

    whole, counter, path = network(), Count(), tmp_path / "run.pt"
    expected = train(whole, None, callbacks=[counter, Callback()], step_fn=Mean())
    with pytest.raises(RuntimeError, match="crash"):
        train(network(), path, callbacks=[Count(), Fail(7)], step_fn=Mean())
    again, resumed = network(), Count()
    assert_same((train(again, path, callbacks=[resumed, Callback()], step_fn=Mean()), again), (expected, whole))
    assert resumed.count == counter.count == STEPS


def test_resume_false_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    train(network(), path)
    other = train(network(), path, lr=0.02, resume=False)
    assert other.lrs != train(network(), None).lrs
    assert train(network(), path, lr=0.02).losses == other.losses


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lr": 0.02}, "lr was 0.01 and is 0.02"),
        ({"steps": 14}, "steps was 13 and is 14"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"train": (X[:40], Y[:40])}, "data was"),
        ({"train": (X + 1, Y)}, "data was"),
        ({"train": (X, Y.flip(0))}, "data was"),
        ({"callbacks": [Callback()]}, "0 callbacks, this run has 1"),
    ],
)
def test_another_run_in_the_file_is_refused(tmp_path: Path, changed: dict[str, object], says: str) -> None:
    path = tmp_path / "run.pt"
    train(network(), path)
    with pytest.raises(TrainingError, match=says):
        train(network(), path, **changed)


def test_another_network_in_the_file_is_refused(tmp_path: Path) -> None:
    """Also one with parameters of the same shapes."""
    path, other = tmp_path / "run.pt", network()
    train(network(), path)
    other[2] = nn.GELU()
    with pytest.raises(TrainingError, match="network was Sequential"):
        train(other, path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a file"])
def test_damaged_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="cannot be read as a checkpoint"):
        train(network(), path)


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    with pytest.raises(TrainingError, match="no training checkpoint"):
        train(network(), path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        train(network(), tmp_path / "file" / "run.pt")


def test_writing_leaves_no_other_files(tmp_path: Path) -> None:
    train(network(), tmp_path / "runs" / "run.pt")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["run.pt"]
