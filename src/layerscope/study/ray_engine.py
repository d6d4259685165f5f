"""Trials on a Ray cluster, behind the same executor: placement, retries and lost machines are Ray's business.

Results come back to the process that owns the store; nothing else is shared between machines.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

from layerscope.errors import MissingExtraError, StudyError
from layerscope.study.executors import ATTEMPTS, Executor, lost
from layerscope.study.trial import Outcome, Trial, execute


def on_ray(
    address: str | None = None, *, workers: int | None = None, cpus: float = 1, gpus: float = 0, window: int = 4
) -> Executor:
    """Run trials as Ray tasks.

    Args:
        address: of a running cluster (``auto``, ``ray://host:10001``); None starts Ray on this machine.
        workers: processors of a Ray started here; all of them, if not given.
        cpus: processors that one trial takes; its thread limits are set to it.
        gpus: share of a GPU that one trial takes.
        window: trials handed to Ray for every one that can run at a time.

    Raises:
        MissingExtraError: Ray is not installed.
        StudyError: no cluster at the address.
    """

    def run(trials: Iterable[Trial]) -> Generator[Outcome, None, None]:
        ray = _import()
        started = not ray.is_initialized()
        if started:
            _connect(ray, address, workers)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=ATTEMPTS - 1, runtime_env=_environment(cpus))(
            execute
        )
        waiting, flying = deque(trials), dict[Any, Trial]()
        try:
            while waiting or flying:
                slots = max(1, int(ray.cluster_resources().get("CPU", 1) / max(cpus, 1e-9)))
                while waiting and len(flying) < slots * window:
                    trial = waiting.popleft()
                    flying[task.remote(trial)] = trial
                ready, _ = ray.wait(list(flying), num_returns=1)
                for reference in ready:
                    yield _outcome(ray, reference, flying.pop(reference))
        finally:
            for reference in flying:
                ray.cancel(reference, force=True)
            if started:
                ray.shutdown()

    return run


def _outcome(ray: Any, reference: Any, trial: Trial) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        return lost(trial, type(error).__name__)
    return outcome


def _import() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "cluster", "--engine ray") from None
    return ray


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StudyError(f"Ray at {address or 'this machine'} cannot be reached: {error}") from None


def _environment(cpus: float) -> dict[str, Any]:
    threads = str(max(1, int(cpus)))
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    if "PYTHONPATH" in os.environ:
        variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return {"env_vars": variables}
