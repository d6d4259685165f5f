"""Grids of trials that survive anything: a study is a TOML file, a trial is a frozen configuration, a result is a row.

::

    from layerscope import study
    s = study.load("norms.toml")                                # grid, exclusions, sub-sample; see study.design
    study.run(s, study.local(workers=2))                        # starts, resumes or extends; Ctrl-C loses nothing
    with study.Store(study.store_path(s)) as store:
        table = study.flatten(store.rows(), s)                  # one flat row for each trial
        study.export(table, "norms.csv")

A trial's id is the hash of its configuration, and everything random in it comes from that configuration, so a trial
that was lost runs again with the same numbers. One process owns the SQLite file; trials run in local processes or on a
Ray cluster and send their results back to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.study.design import Study as Study
    from layerscope.study.design import load as load
    from layerscope.study.design import parse as parse
    from layerscope.study.executors import inline as inline
    from layerscope.study.executors import local as local
    from layerscope.study.progress import Progress as Progress
    from layerscope.study.ray_engine import on_ray as on_ray
    from layerscope.study.runner import Standing as Standing
    from layerscope.study.runner import run as run
    from layerscope.study.runner import standing as standing
    from layerscope.study.runner import store_path as store_path
    from layerscope.study.scoring import Entry as Entry
    from layerscope.study.scoring import Scored as Scored
    from layerscope.study.scoring import ceiling as ceiling
    from layerscope.study.scoring import entries as entries
    from layerscope.study.scoring import evaluate as evaluate
    from layerscope.study.scoring import leave_one_out as leave_one_out
    from layerscope.study.scoring import reputation as reputation
    from layerscope.study.store import Row as Row
    from layerscope.study.store import Store as Store
    from layerscope.study.summary_card import Scorecard as Scorecard
    from layerscope.study.summary_card import scorecard as scorecard
    from layerscope.study.tables import export as export
    from layerscope.study.tables import flatten as flatten
    from layerscope.study.trial import Outcome as Outcome
    from layerscope.study.trial import Trial as Trial
    from layerscope.study.trial import execute as execute

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "load": "design",
        "parse": "design",
        "Study": "design",
        "Trial": "trial",
        "Outcome": "trial",
        "execute": "trial",
        "run": "runner",
        "standing": "runner",
        "store_path": "runner",
        "Standing": "runner",
        "Store": "store",
        "Row": "store",
        "inline": "executors",
        "local": "executors",
        "on_ray": "ray_engine",
        "flatten": "tables",
        "export": "tables",
        "Progress": "progress",
        "scorecard": "summary_card",
        "Scorecard": "summary_card",
        "entries": "scoring",
        "evaluate": "scoring",
        "ceiling": "scoring",
        "reputation": "scoring",
        "leave_one_out": "scoring",
        "Entry": "scoring",
        "Scored": "scoring",
    },
)
