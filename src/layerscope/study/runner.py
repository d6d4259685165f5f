"""Run what a study has left to do, and keep every result the moment it arrives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from layerscope.study.design import Study
from layerscope.study.executors import Executor
from layerscope.study.store import Store
from layerscope.study.trial import Outcome, Trial, function_of


@dataclass(frozen=True)
class Standing:
    """How far a study is."""

    total: int
    done: int
    failed: int
    seconds: float
    """Time spent in the trials that ended."""

    @property
    def left(self) -> int:
        """Trials that have not ended."""
        return self.total - self.done - self.failed


#: Called after every trial with what came of it and how far the study is.
Watcher = Callable[[Trial, Outcome, Standing], None]


def store_path(study: Study, store: str | Path | None = None) -> Path:
    """Where results are kept: ``store``, or the study file's name with ``.sqlite``.

    That file lies in the folder ``results`` beside the study file where there is one, else beside the study file; a
    store that is already beside it is used in any case.
    """
    if store is not None:
        return Path(store)
    if study.path is None:
        return Path(f"{study.name}.sqlite")
    beside = study.path.with_suffix(".sqlite")
    results = study.path.parent / "results"
    return results / beside.name if results.is_dir() and not beside.exists() else beside


def standing(study: Study, store: Store) -> Standing:
    """How far a study is, by its store."""
    states, seconds = store.states(), store.seconds()
    mine = [t.id for t in study.trials if t.id in states]
    done = sum(states[i] == "done" for i in mine)
    return Standing(len(study.trials), done, len(mine) - done, sum(seconds[i] for i in mine))


def run(
    study: Study,
    executor: Executor,
    *,
    store: str | Path | None = None,
    retry_failed: bool = False,
    watch: Watcher | None = None,
    limit: int | None = None,
    only: str | None = None,
) -> Standing:
    """Run every trial that has no result yet; the same call starts, resumes and extends a study.

    A trial that raises is recorded with its traceback and the study goes on. Whatever stops this call (Ctrl-C, a kill,
    a full disk), only trials in flight are lost, and they run again next time.

    Args:
        study: what to run.
        executor: where, see :mod:`layerscope.study.executors`.
        store: the result store; by :func:`store_path` if not given.
        retry_failed: run failed trials again.
        watch: called after every trial.
        limit: run at most this many.
        only: one of the study's lists; its trials run in its order.

    Raises:
        StudyError: the store cannot be used, or the trial function's own check finds something amiss beforehand.
    """
    with Store(store_path(study, store), write=True) as kept:
        states = kept.states()
        wanted = study.trials if only is None else study.listed(only)
        left = [t for t in wanted if t.id not in states or (retry_failed and states[t.id] == "failed")][:limit]
        if left:
            check(study)
        now = standing(study, kept)
        trials = {t.id: t for t in left}
        with closing(executor(left)) as outcomes:
            for outcome in outcomes:
                trial = trials[outcome.trial]
                kept.add(trial, outcome)
                now = _after(now, outcome, states.get(trial.id) == "failed")
                if watch is not None:
                    watch(trial, outcome, now)
        return now


def check(study: Study) -> None:
    """Let the trial function look at all values before the first trial: a wrong name then costs no computing.

    A trial function may have an attribute ``check``, a function of {argument: every value it takes}.
    """
    look = getattr(function_of(study.function), "check", None)
    if look is not None:
        look(study.distinct())


def _after(now: Standing, outcome: Outcome, again: bool) -> Standing:
    failed = now.failed - again + (outcome.state == "failed")
    return Standing(now.total, now.done + (outcome.state == "done"), failed, now.seconds + outcome.seconds)
