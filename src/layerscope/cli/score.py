"""``layerscope score``: how often the verdict of a study's networks was right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from layerscope.study import Study


def score(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    store: Path | None = None,
    part: str = "",
) -> None:
    """Score the verdict and the probe's numbers against what training did, beside baselines that cost nothing.

    Args:
        file: A study file (TOML) whose trials probe and train.
        store: A store, or a row file (.jsonl.gz); by the study file if left out.
        part: all, development, held-out, or one of the file's [lists]; held-out:norm (net, data, ...) for what one
            line of the file's [split] holds out. Held-out trainings where the file has a split, if left out.
    """
    from layerscope import study as studies
    from layerscope.study import rowfile, summary_card

    study = studies.load(file)
    table = studies.flatten(rowfile.rows_of(_results(study, store)), study)
    print(studies.scorecard(study, table, part=part or ("held-out" if study.held_out else "all")))
    others = [name for name in summary_card.parts(study) if name != part]
    if len(others) > 1:
        print(f"\nother parts:  layerscope score {file} --part {others[-1]}")


def _results(study: Study, store: Path | None) -> Path:
    """Where the results are: what was asked for, the study's store, or the rows committed under results/."""
    from layerscope import study as studies

    if store is not None or study.path is None:
        return studies.store_path(study, store)
    own, committed = studies.store_path(study), study.path.parent / "results" / "trials.jsonl.gz"
    return committed if committed.exists() and not own.exists() else own


COMMAND = score
