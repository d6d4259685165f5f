"""``layerscope study``: run, follow and read a grid of trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


def run(
    file: File,
    store: Path | None = None,
    engine: Literal["local", "ray", "inline"] = "local",
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0,
    address: str | None = None,
    retry_failed: bool = False,
    limit: int | None = None,
    only: str | None = None,
) -> None:
    """Run every trial of a study that has no result yet. Ctrl-C loses only the trials in flight; run again to go on.

    Args:
        file: A study file (TOML).
        store: Where results are kept; beside the study file, or in its folder results, if left out.
        engine: Processes of this machine, a Ray cluster, or this process.
        workers: Trials at a time; as many as there are processors, if left out.
        threads: Threads (with ray: processors) for each trial.
        gpus: Share of a GPU for each trial (ray).
        address: Of a running Ray cluster, such as auto; left out, Ray is started here.
        retry_failed: Run failed trials again.
        limit: Run at most this many trials now.
        only: Run the trials of one of the file's [lists], in its order.
    """
    from layerscope import study as studies

    study = studies.load(file)
    executor: Any = studies.inline
    if engine == "local":
        executor = studies.local(workers, threads)
    elif engine == "ray":
        executor = studies.on_ray(address, workers=workers, cpus=threads, gpus=gpus)
    path = studies.store_path(study, store)
    wanted = study.trials if only is None else study.listed(only)
    ended = 0
    if path.exists():
        with studies.Store(path) as kept:
            states = kept.states()
            ended = sum(states.get(t.id) == "done" or (t.id in states and not retry_failed) for t in wanted)
    try:
        with studies.Progress(len(wanted), ended) as progress:
            now = studies.run(
                study, executor, store=path, retry_failed=retry_failed, watch=progress, limit=limit, only=only
            )
    except KeyboardInterrupt:
        print(f"\nstopped; every finished trial is in {path}. To go on:  layerscope study resume {file}")
        raise
    print(_standing(study.name, now))
    print(f"results: {path}")


def resume(
    file: File,
    store: Path | None = None,
    engine: Literal["local", "ray", "inline"] = "local",
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0,
    address: str | None = None,
    retry_failed: bool = False,
) -> None:
    """Go on with a study that was begun; as `run`, but it is an error if there are no results yet.

    Args:
        file: A study file (TOML).
        store: Where results are kept; beside the study file, or in its folder results, if left out.
        engine: Processes of this machine, a Ray cluster, or this process.
        workers: Trials at a time.
        threads: Threads (with ray: processors) for each trial.
        gpus: Share of a GPU for each trial (ray).
        address: Of a running Ray cluster.
        retry_failed: Run failed trials again.
    """
    from layerscope import study as studies

    with studies.Store(studies.store_path(studies.load(file), store)):
        pass
    run(file, store, engine, workers, threads, gpus, address, retry_failed)


def status(file: File, store: Path | None = None) -> None:
    """How far a study is; also while it runs.

    Args:
        file: A study file (TOML).
        store: Where results are kept; beside the study file, or in its folder results, if left out.
    """
    from layerscope import study as studies

    study = studies.load(file)
    path = studies.store_path(study, store)
    if not path.exists():
        print(f"{study.name}: {len(study.trials)} trials, none run yet")
        return
    with studies.Store(path) as kept:
        print(_standing(study.name, studies.standing(study, kept)))


def show(
    file: File, trial: Annotated[str, tyro.conf.Positional] = "", store: Path | None = None, failed: bool = False
) -> None:
    """The results of a study as a table, or everything about one trial.

    Args:
        file: A study file (TOML).
        trial: The first digits of a trial's id: its arguments, numbers and, if it failed, its traceback.
        store: Where results are kept; beside the study file, or in its folder results, if left out.
        failed: Only trials that failed.
    """
    from layerscope import study as studies
    from layerscope.study import view

    study = studies.load(file)
    with studies.Store(studies.store_path(study, store)) as kept:
        if trial:
            print(view.one(kept.get(trial)))
        else:
            rows = [r for r in kept.rows() if not failed or r.state == "failed"]
            print(view.table(study, rows))


def export(
    file: File, out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")], store: Path | None = None
) -> None:
    """Write all results as one flat table, or as a row file that `merge` and `layerscope score` read.

    Args:
        file: A study file (TOML).
        out: A file that ends in .csv, .json or .parquet (a table), or in .jsonl or .jsonl.gz (rows).
        store: Where results are kept; beside the study file, or in its folder results, if left out.
    """
    from layerscope import study as studies
    from layerscope.study import rowfile

    study = studies.load(file)
    rows = rowfile.rows_of(studies.store_path(study, store))
    if rowfile.is_row_file(out):
        mine = {t.id for t in study.trials}
        print(f"{rowfile.write((r for r in rows if r.id in mine), out)} rows: {out}")
        return
    table = studies.flatten(rows, study)
    print(f"{len(table)} rows: {studies.export(table, out)}")


def merge(
    file: File,
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")],
    store: Path | None = None,
) -> None:
    """Bring results of other machines into a study's store; trials it has already are left as they are.

    Args:
        file: A study file (TOML).
        sources: Stores (.sqlite) or row files (.jsonl, .jsonl.gz) of the same study.
        store: Where results are kept; beside the study file, or in its folder results, if left out.
    """
    from layerscope import study as studies
    from layerscope.errors import StudyError
    from layerscope.study import rowfile

    study = studies.load(file)
    mine = {t.id for t in study.trials}
    if not sources:
        raise StudyError("nothing to merge: name at least one store or row file")
    with studies.Store(studies.store_path(study, store), write=True) as kept:
        for source in sources:
            rows = list(rowfile.rows_of(source))
            known = [r for r in rows if r.id in mine]
            added, had = rowfile.merge(kept, known)
            print(f"{source}: {added} added, {had} were there, {len(rows) - len(known)} of other studies")
        print(_standing(study.name, studies.standing(study, kept)))


def _standing(name: str, now: Any) -> str:
    from layerscope.report.numbers import seconds

    parts = [f"{now.done} done", f"{now.failed} failed", f"{now.left} to do"]
    return f"{name}: {now.total} trials, {', '.join(parts)}; {seconds(now.seconds)} spent in trials"


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "resume": resume,
    "status": status,
    "show": show,
    "export": export,
    "merge": merge,
}
