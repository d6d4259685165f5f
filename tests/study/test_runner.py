"""Whole studies: run, kill, resume, fail."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from layerscope.errors import DataError, StudyError
from layerscope.study import Store, flatten, inline, load, local, parse, run, standing, store_path

TESTS = Path(__file__).resolve().parents[1]


def make(function, grid, **fixed):
    return parse({"study": {"name": "t", "trial": f"study.dummies:{function}"}, "grid": grid, "fixed": fixed})


def rows(path):
    with Store(path) as store:
        return {r.id: r for r in store.rows()}


def numbers(path):
    return {i: (r.params, r.result, r.state, r.error) for i, r in rows(path).items()}


def test_a_study_inline_and_on_processes_gives_the_same_rows(tmp_path):
    study = make("square", {"x": list(range(20)), "seed": 2})
    here = run(study, inline, store=tmp_path / "a.sqlite")
    there = run(study, local(4), store=tmp_path / "b.sqlite")
    assert (here.total, here.done, here.failed, here.left) == (40, 40, 0, 0)
    assert there.done == 40
    assert numbers(tmp_path / "a.sqlite") == numbers(tmp_path / "b.sqlite")
    assert len(rows(tmp_path / "b.sqlite")) == 40


def test_results_lie_in_the_results_folder_where_there_is_one(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('[study]\ntrial = "study.dummies:anything"\n[grid]\nnorm = ["a", "b"]\n[fixed]\nnet = "x"\n')
    assert store_path(load(file)) == tmp_path / "s.sqlite"
    (tmp_path / "results").mkdir()
    assert store_path(load(file)) == tmp_path / "results" / "s.sqlite"
    run(load(file), inline)
    assert not list(tmp_path.glob("*.sqlite*"))
    # a study that was begun before goes on where it is
    (tmp_path / "s.sqlite").touch()
    assert store_path(load(file)) == tmp_path / "s.sqlite"
    assert store_path(load(file), "elsewhere.sqlite") == Path("elsewhere.sqlite")


def test_only_what_is_left_is_run(tmp_path):
    study = make("square", {"x": list(range(10))})
    seen = []
    run(study, inline, store=tmp_path / "a.sqlite", limit=4)
    run(study, inline, store=tmp_path / "a.sqlite", watch=lambda t, o, now: seen.append((t.id, now.done)))
    assert [t for t, _ in seen] == [t.id for t in study.trials[4:]]
    assert [n for _, n in seen] == [5, 6, 7, 8, 9, 10]
    larger = make("square", {"x": list(range(12))})
    assert run(larger, inline, store=tmp_path / "a.sqlite").done == 12


def test_a_trial_that_raises_is_recorded_and_the_study_goes_on(tmp_path):
    study = make("fails_on_odd", {"x": list(range(6))})
    now = run(study, local(2), store=tmp_path / "a.sqlite")
    assert (now.done, now.failed) == (3, 3)
    failed = [r for r in rows(tmp_path / "a.sqlite").values() if r.state == "failed"]
    assert {r.error for r in failed} == {f"ValueError: {x} is odd" for x in (1, 3, 5)}
    assert all("Traceback" in r.trace for r in failed)
    assert run(study, inline, store=tmp_path / "a.sqlite").failed == 3
    again = []
    now = run(study, inline, store=tmp_path / "a.sqlite", retry_failed=True, watch=lambda t, o, n: again.append(n))
    assert len(again) == 3
    assert (now.done, now.failed, now.left) == (3, 3, 0)


def test_a_process_that_dies_takes_only_its_trial_with_it(tmp_path):
    study = make("dies", {"x": list(range(8))})
    now = run(study, local(2), store=tmp_path / "a.sqlite")
    assert (now.done, now.failed) == (7, 1)
    lost = next(r for r in rows(tmp_path / "a.sqlite").values() if r.state == "failed")
    assert lost.params["x"] == 3
    assert "died 3 times (signal SIGKILL)" in lost.error


def test_a_trial_whose_process_was_killed_runs_again(tmp_path):
    study = make("dies_once", {"x": [1, 2, 3]}, folder=str(tmp_path))
    assert run(study, local(2), store=tmp_path / "a.sqlite").done == 3


def test_threads_are_pinned_in_workers_and_only_there(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run(make("threads", {"x": [1, 2]}), local(1, threads=3), store=tmp_path / "a.sqlite")
    assert {r.result["omp"] for r in rows(tmp_path / "a.sqlite").values()} == {"3"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_check_fails_before_the_first_trial(tmp_path):
    with pytest.raises(DataError, match="no data set '99'"):
        run(make("checked", {"x": [1, 99]}), inline, store=tmp_path / "a.sqlite")
    assert rows(tmp_path / "a.sqlite") == {}


def test_a_missing_data_set_is_said_before_the_first_trial(tmp_path):
    study = parse({"grid": {"norm": ["batch"]}, "fixed": {"net": "resnet20", "data": "digitz"}})
    with pytest.raises(DataError, match="digits"):
        run(study, inline, store=tmp_path / "a.sqlite")


def test_a_full_disk_stops_the_study_and_it_resumes(tmp_path, monkeypatch):
    study = make("big", {"x": list(range(60))})
    path = tmp_path / "a.sqlite"
    opened = Store._open

    def small(self, write):
        opened(self, write)
        self._db.execute("PRAGMA max_page_count = 60")

    monkeypatch.setattr(Store, "_open", small)
    with pytest.raises(StudyError, match="disk is full"):
        run(study, local(2), store=path)
    monkeypatch.undo()
    kept = len(rows(path))
    assert 0 < kept < 60
    assert run(study, local(2), store=path).done == 60


def test_stopping_early_leaves_no_worker_behind(tmp_path):
    study = make("tells_its_process", {"x": list(range(20))}, folder=str(tmp_path))

    def stop(trial, outcome, now):
        if now.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, local(2), store=tmp_path / "a.sqlite", watch=stop)
    assert len(rows(tmp_path / "a.sqlite")) == 2
    for process in {int(p.name.split("-")[0]) for p in tmp_path.glob("*-*") if p.name[0].isdigit()}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def write_study(folder, trials=60, seconds=0.02):
    text = f"""
    [study]
    trial = "study.dummies:slow"
    [grid]
    x = {list(range(trials // 3))}
    seed = 3
    [fixed]
    seconds = {seconds}
    """
    path = folder / "s.toml"
    path.write_text(textwrap.dedent(text))
    return path


def command(*arguments):
    code = "import sys; from layerscope.cli import study; import tyro;"
    code += "tyro.extras.subcommand_cli_from_dict(study.COMMANDS, args=sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(path, count, process):
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        try:
            if len(rows(path)) >= count:
                return
        except StudyError:
            pass
        time.sleep(0.005)


def test_kill_nine_three_times_then_resume_equals_an_uninterrupted_run(tmp_path):
    file = write_study(tmp_path)
    path = store_path(load(file))
    chance = random.Random(7)
    for _ in range(3):
        before = len(rows(path)) if path.exists() else 0
        process = command("run", str(file), "--workers", "2")
        wait_for_rows(path, before + chance.randint(1, 12), process)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert before < len(rows(path)) < 60
    finished = command("resume", str(file), "--workers", "2")
    out, err = finished.communicate(timeout=60)
    assert finished.returncode == 0, err
    assert "60 done, 0 failed, 0 to do" in out

    run(load(file), inline, store=tmp_path / "whole.sqlite")
    assert numbers(path) == numbers(tmp_path / "whole.sqlite")


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    file = write_study(tmp_path)
    path = store_path(load(file))
    process = command("run", str(file), "--workers", "2")
    wait_for_rows(path, 5, process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "layerscope study resume" in out
    done = len(rows(path))
    assert 5 <= done < 60
    with Store(path) as store:
        assert standing(load(file), store).left == 60 - done


def test_overhead_of_ten_thousand_dummy_trials(tmp_path):
    study = make("square", {"x": list(range(10_000))})
    start = time.perf_counter()
    now = run(study, local(2), store=tmp_path / "a.sqlite")
    assert now.done == 10_000
    assert (time.perf_counter() - start) / 10_000 < 5e-3


def test_results_of_four_workers_are_all_kept(tmp_path):
    study = make("square", {"x": list(range(400))})
    assert run(study, local(4), store=tmp_path / "a.sqlite").done == 400
    with Store(tmp_path / "a.sqlite") as store:
        table = flatten(store.rows(), study)
    assert [row["x"] for row in table] == list(range(400))


def test_local_processes_also_serve_a_program_that_came_from_stdin(tmp_path):
    program = (
        "from layerscope.study.executors import local\n"
        "from layerscope.study.trial import Trial\n"
        "print([o.state for o in local(1)([Trial.of('study.dummies:square', {'x': 3})])])\n"
    )
    paths = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-"],
        input=program,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.stdout.strip() == "['done']", done.stderr
