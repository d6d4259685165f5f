from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from layerscope.errors import TrainingError
from layerscope.methods import medic
from layerscope.methods.medic import MedicError, attacks, baselines
from layerscope.methods.medic.keeping import fingerprint, settings_of
from methods.medic.medic_nets import same, samples, tiny

CORNER = {"corner": (attacks.BadNet(), 0)}


def stopped_after(epochs: int):
    def stop(done: int, student: nn.Module, numbers: object) -> None:
        if done == epochs:
            raise KeyboardInterrupt

    return stop


def clone(path=None, on_epoch=None, **changed):
    settings = {"epochs": 3, "batch_size": 8, "progress": False, "seed": 1, "checkpoint": path, **changed}
    return medic.clone(tiny(), samples(), on_epoch=on_epoch, **settings)


def test_a_clone_that_was_stopped_goes_on_to_the_same_clone(tmp_path):
    whole = clone()
    path = tmp_path / "clone.pt"
    with pytest.raises(KeyboardInterrupt):
        clone(path, stopped_after(2))
    seen = []
    done = clone(path, lambda epochs, *_: seen.append(epochs))
    assert seen[-1] == 3
    assert 1 not in seen
    assert same(whole.model, done.model)
    assert done.report.taps == whole.report.taps
    assert done.report.clone_losses == whole.report.clone_losses
    again = clone(path, stopped_after(1))  # finished: there is no epoch left to be stopped after
    assert same(again.model, done.model)
    assert again.report.taps == done.report.taps


@pytest.mark.parametrize(
    "change", [{"clone_weight": 2.0}, {"clone_weight": 0.0}, {"taps": ["0"]}, {"sharpness": 1.0}, {"epochs": 4}]
)
def test_another_clone_does_not_go_on(tmp_path, change):
    path = tmp_path / "clone.pt"
    clone(path)
    with pytest.raises(TrainingError, match="holds a different run"):
        clone(path, **change)
    clone(path, resume=False, **change)


def test_training_from_scratch_goes_on_too(tmp_path):
    path = tmp_path / "clone.pt"
    with pytest.raises(KeyboardInterrupt):
        clone(path, stopped_after(2), clone_weight=0.0)
    assert same(clone(path, clone_weight=0.0).model, clone(clone_weight=0.0).model)


def test_another_teacher_is_another_clone(tmp_path):
    path = tmp_path / "clone.pt"
    clone(path)
    with pytest.raises(TrainingError, match=r"model was \w+ and is \w+"):
        medic.clone(tiny(7), samples(), epochs=3, batch_size=8, progress=False, seed=1, checkpoint=path)


def test_fingerprints_tell_tensors_apart():
    x = torch.arange(6.0)
    kinds = [x, x + 1, x.double(), x.view(2, 3), x.bfloat16(), x.bool(), x[:0], torch.tensor(1.0)]
    assert len({fingerprint({"x": k}) for k in kinds}) == len(kinds)
    assert fingerprint({"x": x}) == fingerprint({"x": x.clone().view(2, 3).T.contiguous().T.reshape(6)})
    assert fingerprint({"x": x}) != fingerprint({"y": x})


def test_settings_do_not_depend_on_where_a_function_lies_in_memory():
    a, b = (baselines.Medic(epochs=1, factory=lambda: tiny()) for _ in range(2))
    assert settings_of(a) == settings_of(b) != settings_of(baselines.Medic(epochs=2))
    assert settings_of(clone) == "clone"


class Counted:
    """A defence that counts its runs, and breaks at one of them."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.runs, self.breaks_at = 0, breaks_at

    def __call__(self, model: nn.Module, clean: object, seed: int = 0) -> nn.Module:
        if self.runs == self.breaks_at:
            raise KeyboardInterrupt
        self.runs += 1
        return tiny(20 + seed)


def compared(defence, path, test: tuple[Tensor, Tensor] | None = None, triggers=None):
    return medic.compare(
        {"counted": defence}, tiny(), samples(), test or samples(30), triggers or CORNER, seeds=(0, 1, 2),
        floor=tiny(8), keep=path, progress=False,
    )  # fmt: skip


def without_times(table) -> list[object]:
    return [(e.defence, e.trigger, e.scores) for e in table.entries]


def test_a_comparison_that_was_stopped_runs_the_rest(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        compared(Counted(breaks_at=2), path)
    # killed while a line was being written
    path.write_text(path.read_text() + '{"defence": "counted", "settings": "Coun')
    rest = Counted()
    table = compared(rest, path)
    assert rest.runs == 1
    assert without_times(table) == without_times(compared(Counted(), None))
    none = Counted()
    assert compared(none, path) == table
    assert none.runs == 0
    assert len(path.read_text().splitlines()) == 1 + 4 + 1  # head, floor and three runs, the line cut off


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    compared(Counted(), path)
    with pytest.raises(MedicError, match=r"another comparison \(test data differ\)"):
        compared(Counted(), path, test=samples(31))
    with pytest.raises(MedicError, match=r"another comparison \(triggers differ\)"):
        compared(Counted(), path, triggers={"corner": (attacks.BadNet(), 1)})
    for junk in ("junk", "{}\n", json.dumps({"layerscope_comparison": 0, "of": {}}) + "\n", "[1]\n"):
        path.write_text(junk)
        with pytest.raises(MedicError, match="holds no finished runs"):
            compared(Counted(), path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MedicError, match="cannot be read"):
        compared(Counted(), path)
    with pytest.raises(MedicError, match="cannot be read"):
        compared(Counted(), tmp_path)
