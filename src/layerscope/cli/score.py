"""``layerscope score``: how often the verdict of a study's networks was right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def score(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    store: Path | None = None,
    part: Literal["all", "development", "held-out"] = "all",
) -> None:
    """Score the verdict and the probe's numbers against what training did, beside baselines that cost nothing.

    Args:
        file: A study file (TOML) whose trials probe and train.
        store: Where results are kept; beside the study file if left out.
        part: All trainings, or those that the file's [split] does or does not hold out.
    """
    from layerscope import study as studies

    study = studies.load(file)
    with studies.Store(studies.store_path(study, store)) as kept:
        table = studies.flatten(kept.rows(), study)
    wanted = {"all": None, "development": False, "held-out": True}[part]
    print(studies.scorecard(study, table, held_out=wanted))


COMMAND = score
