"""From the committed trainings to the published hit rate: what was tried, what was fitted, what it is worth.

    python papers/beyond-batchnorm/hit_rate.py ideas      # everything that was tried, on the development part only
    python papers/beyond-batchnorm/hit_rate.py publish    # fit on the development part, score the held-out one

``publish`` writes results/scores.md, results/scores.json and the data file that the package loads
(src/layerscope/verdict/evidence.json). Only its last step looks at held-out trainings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from layerscope import study
from layerscope.study import fitting, rowfile
from layerscope.study.hit_rates import hit_rates
from layerscope.study.rejudge import rejudged
from layerscope.study.scoring import Entry, Score, entries, evaluate, leave_one_out
from layerscope.study.summary_card import BASELINES, INIT, MICRO, parts, scorecard, strata_columns
from layerscope.verdict import evidence

HERE = Path(__file__).parent
STUDY = HERE / "study.toml"
ROWS = HERE / "results" / "trials.jsonl.gz"
PACKAGE = HERE.parents[1] / "src" / "layerscope" / "verdict" / "evidence.json"

PROBE = ("dissimilarity", "forward scale", "largest activation", "gradient ratio", "gradient imbalance", "batch noise")
MORE = ("effective rank", "spread", "excess loss", "token dissimilarity")
RATE = ("learning rate", "batch size")
CURVED = ("rate x gradient", "rate x sharpness", "overshoot", "rate x update")
STEPS = ("loss drop", "worst loss", "end loss", "diverged")

#: What is published: terms and target of every score.
CHOSEN: dict[str, tuple[tuple[str, ...], fitting.Target]] = {
    "learned init": ((*PROBE, *MORE, *RATE, *CURVED), "level"),
    "learned micro": ((*PROBE, *MORE, *RATE, *CURVED, *STEPS), "level"),
}

#: Tried on the development part: name -> terms, target, ridge.
IDEAS: dict[str, tuple[tuple[str, ...], fitting.Target, float]] = {
    "probe only": (PROBE, "level", 3.0),
    "probe, more numbers": ((*PROBE, *MORE), "level", 3.0),
    "... and rate, batch": ((*PROBE, *MORE, *RATE), "level", 3.0),
    "... and curvature": ((*PROBE, *MORE, *RATE, *CURVED), "level", 3.0),
    "... fitted to places": ((*PROBE, *MORE, *CURVED), "place", 3.0),
    "... fitted to failing": ((*PROBE, *MORE, *RATE, *CURVED), "risk", 3.0),
    "curvature alone": ((*RATE, *CURVED), "level", 3.0),
    "steps alone": ((*RATE, *STEPS), "level", 3.0),
    "steps, to places": (STEPS, "place", 3.0),
    "steps, to failing": ((*RATE, *STEPS), "risk", 3.0),
    "probe and steps": ((*PROBE, *RATE, *STEPS), "level", 3.0),
    "all": ((*PROBE, *MORE, *RATE, *CURVED, *STEPS), "level", 3.0),
    "all, to places": ((*PROBE, *MORE, *CURVED, *STEPS), "place", 3.0),
    "all, to failing": ((*PROBE, *MORE, *RATE, *CURVED, *STEPS), "risk", 3.0),
}


def load(rows: Path) -> tuple[study.Study, list[dict[str, object]], tuple[Entry, ...]]:
    """The study, its flat rows, and its finished trainings."""
    what = study.load(STUDY)
    table = rejudged(study.flatten(rowfile.rows_of(rows), what))
    return what, table, entries(table, strata_columns(what))


def ideas(rows: Path) -> str:
    """Every idea on the development part, each network scored by a fit that has not seen it."""
    _, _, everything = load(rows)
    dev = [e for e in everything if not e.row["held_out"]]
    lines = [
        f"{len(dev)} development trainings; fitted scores by leave-one-network-out, then leave-one-norm-out",
        f"{'':24}{'Spearman':20}{'AUROC fails':20}regret | without the norm: Spearman, AUROC",
    ]
    fixed: dict[str, Score] = {**INIT, **MICRO, **BASELINES}
    for name, score in fixed.items():
        lines.append(_line(name, dev, [score(e) for e in dev]))
    for name, (terms, target, ridge) in IDEAS.items():

        def fit(
            part: Sequence[Entry],
            terms: tuple[str, ...] = terms,
            target: fitting.Target = target,
            ridge: float = ridge,
        ) -> Score:
            found = fitting.fit(part, terms, target=target, ridge=ridge)
            return lambda entry: found.expected(entry.row)

        lines.append(_line(name, dev, leave_one_out(dev, "net", fit), leave_one_out(dev, "norm", fit)))
    return "\n".join(lines)


def _line(name: str, rows: Sequence[Entry], *scores: Sequence[float | None]) -> str:
    first, *others = (evaluate(name, rows, s, draws=300) for s in scores)
    tail = "".join(
        f" | {o.spearman and round(o.spearman.mean, 2)} {o.auroc and round(o.auroc.mean, 3)}" for o in others
    )
    return f"{name:24}{first.spearman!s:20}{first.auroc!s:20}{first.regret and round(first.regret.mean, 3)}{tail}"


def fitted(dev: Sequence[Entry]) -> dict[str, object]:
    """The published scores, fitted on development trainings."""
    return {
        name: fitting.fit(dev, terms, target=target, ridge=3.0).to_plain() for name, (terms, target) in CHOSEN.items()
    }


def publish(rows: Path) -> str:
    """Fit, then score; write the tables and the package's data file."""
    what, table, everything = load(rows)
    dev = [e for e in everything if not e.row["held_out"]]
    held = [e for e in everything if e.row["held_out"]]
    document = {
        "summary": {
            "study": "papers/beyond-batchnorm/study.toml",
            "trainings": len(everything),
            "development": len(dev),
            "held_out": len(held),
            "failed": round(sum(e.fails for e in held) / len(held), 4),
            "rows_sha256": hashlib.sha256(rows.read_bytes()).hexdigest(),
        },
        "scores": fitted(dev),
        "rates": {
            basis: {label: asdict(rate) for label, rate in rates.items()}
            for basis, rates in hit_rates(held, everything).items()
        },
    }
    PACKAGE.write_text(json.dumps(document, indent=1) + "\n")
    evidence.load.cache_clear()
    cards = {part: scorecard(what, table, part=part) for part in parts(what) if part != "all"}
    text = "\n\n".join(f"## {part}\n\n```\n{card}\n```" for part, card in cards.items())
    (HERE / "results" / "scores.md").write_text(f"# Scores\n\nWritten by `hit_rate.py publish`.\n\n{text}\n")
    plain = {part: asdict(card) for part, card in cards.items()}
    (HERE / "results" / "scores.json").write_text(json.dumps(plain, indent=1) + "\n")
    return text


def main() -> None:
    """Command line."""
    commands: dict[str, Callable[[Path], str]] = {"ideas": ideas, "publish": publish}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--rows", type=Path, default=ROWS, help="a row file or a store")
    args = parser.parse_args()
    print(commands[args.command](args.rows))


if __name__ == "__main__":
    main()
