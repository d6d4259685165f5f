import multiprocessing
import sqlite3
import time

import pytest

from layerscope.errors import StudyError
from layerscope.study.store import SCHEMA_VERSION, Store
from layerscope.study.trial import Outcome, Trial, execute


def trial(x):
    return Trial.of("study.dummies:square", {"x": x})


def fill(store, numbers):
    for x in numbers:
        store.add(trial(x), execute(trial(x)))


def test_rows_come_back_as_they_went_in(tmp_path):
    with Store(tmp_path / "a.sqlite", write=True) as store:
        fill(store, range(5))
        store.add(trial(9), Outcome(trial(9).id, "failed", {}, "ValueError: no", "Traceback ...", 1.5))
    with Store(tmp_path / "a.sqlite") as store:
        rows = {r.id: r for r in store.rows()}
        assert len(rows) == 6
        assert rows[trial(3).id].params == {"x": 3}
        assert rows[trial(3).id].result == execute(trial(3)).result
        assert store.states()[trial(9).id] == "failed"
        row = store.get(trial(9).id[:8])
        assert (row.error, row.trace, row.seconds) == ("ValueError: no", "Traceback ...", 1.5)


def test_a_second_result_takes_the_place_of_the_first(tmp_path):
    with Store(tmp_path / "a.sqlite", write=True) as store:
        store.add(trial(1), Outcome(trial(1).id, "failed", {}, "x", "x", 0.0))
        fill(store, [1])
        assert store.states() == {trial(1).id: "done"}


def test_one_writer_at_a_time_and_readers_meanwhile(tmp_path):
    with Store(tmp_path / "a.sqlite", write=True) as writer:
        fill(writer, range(3))
        with pytest.raises(StudyError, match="another process is writing"):
            Store(tmp_path / "a.sqlite", write=True)
        with Store(tmp_path / "a.sqlite") as reader:
            assert len(reader.states()) == 3
            fill(writer, range(3, 6))
            assert len(reader.states()) == 6
    with Store(tmp_path / "a.sqlite", write=True) as writer:
        assert len(writer.states()) == 6


def test_a_newer_store_is_left_alone(tmp_path):
    path = tmp_path / "a.sqlite"
    Store(path, write=True).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(SCHEMA_VERSION + 1),))
    db.close()
    before = path.read_bytes()
    for write in (False, True):
        with pytest.raises(StudyError, match=f"newer layerscope .store version {SCHEMA_VERSION + 1}"):
            Store(path, write=write)
    assert path.read_bytes() == before


def test_files_that_are_no_stores(tmp_path):
    with pytest.raises(StudyError, match="no results at"):
        Store(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("this is not a database, it is a letter to a friend\n" * 50)
    with pytest.raises(StudyError, match="not a readable result store"):
        Store(tmp_path / "text.sqlite", write=True)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    with pytest.raises(StudyError, match="is not a layerscope result store"):
        Store(tmp_path / "other.sqlite", write=True)


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path):
    path = tmp_path / "a.sqlite"
    kept, said = 0, ""
    with Store(path, write=True) as store:
        store._db.execute("PRAGMA max_page_count = 40")
        for x in range(1000):
            big = Trial.of("study.dummies:big", {"x": x})
            try:
                store.add(big, execute(big))
            except StudyError as error:
                said = str(error)
                break
            kept += 1
    assert "disk is full" in said
    assert "earlier ones are safe" in said
    assert 0 < kept < 1000
    with Store(path) as store:
        assert len(store.states()) == kept
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Store(path, write=True) as store:
        fill(store, range(3))
        assert len(store.states()) == kept + 3


def test_ids_that_name_no_or_several_trials(tmp_path):
    with Store(tmp_path / "a.sqlite", write=True) as store:
        fill(store, range(40))
        with pytest.raises(StudyError, match="no ended trial"):
            store.get("zz")
        with pytest.raises(StudyError, match="more than one ended trial"):
            store.get("")


def test_an_insert_takes_far_less_than_five_milliseconds(tmp_path):
    outcome = execute(trial(0))
    with Store(tmp_path / "a.sqlite", write=True) as store:
        start = time.process_time()
        for x in range(500):
            store.add(trial(x), outcome)
        assert (time.process_time() - start) / 500 < 2e-3


def _contend(path, numbers, done):
    for x in numbers:
        while True:
            try:
                with Store(path, write=True) as store:
                    fill(store, [x])
                break
            except StudyError:
                time.sleep(0.002)
    done.put(len(numbers))


def test_four_processes_that_take_turns_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    path = tmp_path / "a.sqlite"
    parts = [range(k, 60, 4) for k in range(4)]
    processes = [context.Process(target=_contend, args=(path, part, done)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    with Store(path) as store:
        assert store.states().keys() == {trial(x).id for x in range(60)}
