"""Where trials run, behind one function: trials in, outcomes out, in whatever order they end.

``local`` are processes on this machine, ``ray`` a Ray cluster (:mod:`layerscope.study.ray_engine`), ``inline`` this
process. An executor keeps no state and writes nothing; closing its iterator stops what is in flight.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from layerscope.study.trial import Outcome, Trial, execute

Executor = Callable[[Iterable[Trial]], Generator[Outcome, None, None]]

#: A trial whose process dies this often (out of memory, killed) is recorded as failed.
ATTEMPTS = 3

#: What libraries read to decide how many threads they start.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def inline(trials: Iterable[Trial]) -> Generator[Outcome, None, None]:
    """Run trials one after the other in this process."""
    for trial in trials:
        yield execute(trial)


def local(workers: int | None = None, threads: int = 1) -> Executor:
    """Run trials in processes of this machine.

    Args:
        workers: processes; as many as there are processors divided by ``threads``, if not given.
        threads: threads that each process may use.
    """
    count = workers or max(1, (os.cpu_count() or 1) // threads)

    def run(trials: Iterable[Trial]) -> Generator[Outcome, None, None]:
        waiting = deque(trials)
        pool = [_Worker.start(threads) for _ in range(min(count, len(waiting)))]
        attempts: dict[str, int] = {}
        try:
            while waiting or any(w.trial for w in pool):
                for worker in pool:
                    if worker.trial is None and waiting:
                        worker.give(waiting.popleft())
                ready = wait([w.pipe for w in pool if w.trial is not None])
                for index, worker in enumerate(pool):
                    if worker.pipe not in ready:
                        continue
                    trial, outcome = worker.take()
                    if outcome is None:
                        worker.stop()
                        pool[index] = _Worker.start(threads)
                        attempts[trial.id] = attempts.get(trial.id, 0) + 1
                        if attempts[trial.id] < ATTEMPTS:
                            waiting.appendleft(trial)
                            continue
                        outcome = lost(trial, worker.exit_text())
                    yield outcome
        finally:
            for worker in pool:
                worker.stop()

    return run


def lost(trial: Trial, how: str) -> Outcome:
    """The outcome of a trial whose process died every time."""
    text = f"the process running it died {ATTEMPTS} times ({how}); out of memory is the usual cause"
    return Outcome(trial.id, "failed", {}, text, text, 0.0)


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    trial: Trial | None = None

    @classmethod
    def start(cls, threads: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True, name="layerscope trial worker")
        with _pinned(threads), _without_missing_main():
            process.start()
        theirs.close()
        return cls(process, ours)

    def give(self, trial: Trial) -> None:
        self.trial = trial
        # a worker that died while idle is noticed when its pipe is read
        with suppress(OSError):
            self.pipe.send(trial)

    def take(self) -> tuple[Trial, Outcome | None]:
        """The trial and its outcome; None if the process died."""
        trial, self.trial = self.trial, None
        assert trial is not None
        try:
            outcome: Outcome = self.pipe.recv()
        except (EOFError, OSError):
            return trial, None
        return trial, outcome

    def exit_text(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"

    def stop(self) -> None:
        self.pipe.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection) -> None:
    """A worker's life: one trial after the other, until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides
    while True:
        try:
            trial: Trial = pipe.recv()
            pipe.send(execute(trial))
        except (EOFError, OSError):
            return


@contextmanager
def _without_missing_main() -> Iterator[None]:
    """A program read from stdin has no file that a new process could load it from, and needs none."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or os.path.exists(file):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = file


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """The thread limits in the environment, for a process to inherit at its start."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
