"""From the committed trainings to the published hit rate: what was tried, what was fitted, what it is worth.

    python papers/beyond-batchnorm/hit_rate.py ideas      # everything that was tried, on the development part only
    python papers/beyond-batchnorm/hit_rate.py cutoffs    # the rules' cut-offs, likewise
    python papers/beyond-batchnorm/hit_rate.py publish    # fit on the development part, score the held-out one

    python papers/beyond-batchnorm/hit_rate.py rerun      # one set-up again, against its rows
    python papers/beyond-batchnorm/hit_rate.py misses     # where the published scores were wrong
    python papers/beyond-batchnorm/hit_rate.py noise      # would they be others with today's estimate of batch noise?

``publish`` writes results/ (scores, ideas, misses), the numbers in docs/hit-rate.md, and the data file that the package
loads (src/layerscope/verdict/evidence.json).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

from layerscope import data as datasets
from layerscope import probe, sources, study
from layerscope.study import fitting, lists, rowfile
from layerscope.study.hit_rates import cleanest, hit_rates
from layerscope.study.rejudge import rejudge, rejudged
from layerscope.study.scoring import Entry, Score, entries, evaluate, leave_one_out
from layerscope.study.summary_card import BASELINES, INIT, MICRO, Scorecard, members, parts, scorecard, strata_columns
from layerscope.study.trials import hardware, net_of
from layerscope.verdict import evidence
from layerscope.verdict.features import short
from layerscope.verdict.thresholds import DEFAULT
from layerscope.verdict.types import LABELS

HERE = Path(__file__).parent
STUDY = HERE / "study.toml"
ROWS = HERE / "results" / "trials.jsonl.gz"
PAGE = HERE.parents[1] / "docs" / "hit-rate.md"
MARKS = ("<!-- numbers: written by hit_rate.py publish -->", "<!-- end of numbers -->")
PACKAGE = HERE.parents[1] / "src" / "layerscope" / "verdict" / "evidence.json"

PROBE = ("dissimilarity", "forward scale", "largest activation", "gradient ratio", "gradient imbalance", "batch noise")
MORE = ("effective rank", "spread", "excess loss", "token dissimilarity")
RATE = ("learning rate", "batch size")
CURVED = ("rate x gradient", "rate x sharpness", "overshoot", "rate x update")
STEPS = ("loss drop", "worst loss", "end loss", "diverged")

#: What is published: terms, target and ridge of every score. ``risk`` is for who fails, the others for the order.
CHOSEN: dict[str, tuple[tuple[str, ...], fitting.Target, float]] = {
    "probe init": ((*PROBE, *MORE), "level", 3.0),
    "learned init": ((*PROBE, *MORE, *RATE, *CURVED), "level", 10.0),
    "risk init": ((*PROBE, *MORE, *RATE, *CURVED), "risk", 10.0),
    "learned micro": ((*PROBE, *RATE, *STEPS), "level", 3.0),
    "risk micro": ((*PROBE, *MORE, *RATE, *CURVED, *STEPS), "risk", 10.0),
}

#: Tried on the development part: name -> terms, target, ridge.
IDEAS: dict[str, tuple[tuple[str, ...], fitting.Target, float]] = {
    "probe only": (PROBE, "level", 3.0),
    "probe, more numbers": ((*PROBE, *MORE), "level", 3.0),
    "... and rate, batch": ((*PROBE, *MORE, *RATE), "level", 3.0),
    "... and curvature": ((*PROBE, *MORE, *RATE, *CURVED), "level", 3.0),
    "... pulled harder": ((*PROBE, *MORE, *RATE, *CURVED), "level", 10.0),
    "... fitted to places": ((*PROBE, *MORE, *CURVED), "place", 3.0),
    "... fitted to failing": ((*PROBE, *MORE, *RATE, *CURVED), "risk", 10.0),
    "curvature alone": ((*RATE, *CURVED), "level", 3.0),
    "steps alone": ((*RATE, *STEPS), "level", 3.0),
    "steps, to places": (STEPS, "place", 3.0),
    "steps, to failing": ((*RATE, *STEPS), "risk", 3.0),
    "probe and steps": ((*PROBE, *RATE, *STEPS), "level", 3.0),
    "probe, more, and steps": ((*PROBE, *MORE, *RATE, *STEPS), "level", 3.0),
    "all": ((*PROBE, *MORE, *RATE, *CURVED, *STEPS), "level", 3.0),
    "all, to places": ((*PROBE, *MORE, *CURVED, *STEPS), "place", 3.0),
    "all, to failing": ((*PROBE, *MORE, *RATE, *CURVED, *STEPS), "risk", 10.0),
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


def cutoffs(rows: Path) -> str:
    """Every cut-off that the rows can judge anew, one at a time around the present values, on the development part."""
    _, _, everything = load(rows)
    dev = [e for e in everything if not e.row["held_out"]]
    tried: dict[str, tuple[float, ...]] = {
        "growth_total": (0.0, 4.0, 8.0, 20.0, 100.0),
        "growth_bad": (1.3, 1.5, 1.8, 2.2),
        "vanish_bad": (1e-6, 1e-5, 1e-4, 1e-3),
        "informative_caution": (0.05, 0.07, 0.1, 0.13),
        "informative_bad": (0.01, 0.03, 0.05),
        "pooled_caution": (0.02, 0.03, 0.04, 0.06, 0.1),
        "pooled_bad": (0.006, 0.01, 0.02),
        "noise_bad": (0.1, 0.2, 0.375, 0.8, 99.0),
        "update_silent": (0.0, 1e-5, 1e-3, 5e-3),
        "steps_worse": (1.1, 1.3, 1.5, 2.0),
        "steps_stuck": (-9.0, 0.0, 0.01, 0.02, 0.05),
        "steps_learn": (0.1, 0.2, 0.3, 0.4, 2.0),
    }
    lines = [f"{len(dev)} development trainings: Spearman and AUROC of the label; * is in use"]
    for name, values in tried.items():
        after = int(name.startswith("steps"))
        for value in values:
            limits = replace(DEFAULT, **{name: value})
            labels = [float(LABELS.index(rejudge(e.row, limits)[after])) for e in dev]
            found = evaluate(name, dev, [-v for v in labels], draws=50)
            mark = "*" if value == getattr(DEFAULT, name) else " "
            rho, area = found.spearman, found.auroc
            if rho and area:
                lines.append(f"{mark} {name:14}{value:<10g}{rho.mean:.3f}  {area.mean:.3f}")
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
        name: fitting.fit(dev, terms, target=target, ridge=ridge).to_plain()
        for name, (terms, target, ridge) in CHOSEN.items()
    }


def publish(rows: Path) -> str:
    """Fit, then score; write the tables, the page's numbers and the package's data file."""
    what, table, everything = load(rows)
    dev, held, clean = (members(what, everything, part) for part in ("development", "held-out", "fresh"))
    document = {
        "summary": {
            "study": "papers/beyond-batchnorm/study.toml",
            "trainings": len(everything),
            "development": len(dev),
            "held_out": len(held),
            "fresh": len(clean),
            "failed": round(sum(e.fails for e in held) / len(held), 4),
            "rows_sha256": hashlib.sha256(rows.read_bytes()).hexdigest(),
        },
        "scores": fitted(dev),
        "rates": {
            basis: {label: asdict(rate) for label, rate in rates.items()}
            for basis, rates in cleanest(hit_rates(clean, everything), hit_rates(held, everything)).items()
        },
    }
    PACKAGE.write_text(json.dumps(document, indent=1) + "\n")
    evidence.load.cache_clear()
    cards = {part: scorecard(what, table, part=part) for part in parts(what) if part.startswith("fresh")}
    listed = set(dict(what.lists)["fresh"])
    older = [row for row in table if row["id"] not in listed]
    cards |= {
        part.replace("held-out", "before"): scorecard(what, older, part=part)
        for part in parts(what)
        if part.startswith(("held-out", "development"))
    }
    text = "\n\n".join(f"## {part}\n\n```\n{card}\n```" for part, card in cards.items())
    about = "Written by `hit_rate.py publish`. `fresh`: the clean test; `before`: held-out trainings run before it."
    (HERE / "results" / "scores.md").write_text(f"# Scores\n\n{about}\n\n{text}\n")
    plain = {part: asdict(card) for part, card in cards.items()}
    (HERE / "results" / "scores.json").write_text(json.dumps(plain, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    numbers = f"{rates_table(clean, held, everything)}\n\n{goals_table(cards)}\n\n```\n{cards['fresh']}\n```"
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{numbers}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    (HERE / "results" / "misses.txt").write_text(misses(rows) + "\n")
    (HERE / "results" / "ideas.txt").write_text(f"{ideas(rows)}\n\n{cutoffs(rows)}\n")
    return text


FRESH_ABOUT = """\
The clean test: held-out trials of set-ups (network, data, depth, batch size, learning rate) of which no trial had been
run, at any seed, when this list was written, at seed 0, in the study's own order (rounds of one set-up of every network
and data set, drawn by hash: layerscope.study.setups). Written by  hit_rate.py fresh  from the rows whose SHA-256 is
{rows}
and committed, together with the fitted scores that are judged, before any of these trials ran."""


def fresh(rows: Path) -> str:
    """Write the list of trials of the clean test: once, before they run."""
    what = study.load(STUDY)
    names = ("net", "data", "depth", "batch_size", "lr")

    def setup(trial: study.Trial) -> tuple[object, ...]:
        return tuple(trial.arguments[n] for n in names)

    done = {r.id for r in rowfile.rows_of(rows)}
    seen = {setup(t) for t in what.trials if t.id in done}
    chosen = [t for t in what.trials if setup(t) not in seen and t.arguments["seed"] == 0 and what.is_held_out(t)]
    about = FRESH_ABOUT.format(rows=hashlib.sha256(rows.read_bytes()).hexdigest())
    lists.write(HERE / "fresh.txt", about, [t.id for t in chosen])
    return f"{len(chosen)} trials of {len({setup(t) for t in chosen})} set-ups"


def rates_table(clean: Sequence[Entry], held: Sequence[Entry], everything: Sequence[Entry]) -> str:
    """Hit rates of every kind of verdict, as Markdown: in the clean test, and over all held-out trainings."""
    found = [hit_rates(rows, everything) for rows in (clean, held)]
    heads = [f"{name}, {basis}" for basis in ("from init", "20 steps") for name in ("clean test", "all held-out")]
    lines = [f"| verdict | right if it | usual | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for label, meaning in evidence.MEANING.items():
        cells = [rates[basis].get(label) for basis in ("init", "micro") for rates in found]
        said = [f"{r.right:.0%} [{r.low:.0%}, {r.high:.0%}] of {r.count}" if r else "never given" for r in cells]
        usual = next((f"{r.usual:.0%}" for r in cells if r), "-")
        lines.append(f"| {label} | {meaning} | {usual} | {' | '.join(said)} |")
    return "\n".join(lines)


def goals_table(cards: dict[str, Scorecard]) -> str:
    """What was aimed at and what came of it, in the clean test and before it, as Markdown."""
    goals: list[tuple[str, str, str, float]] = [
        ("AUROC for failing from initialization, at least 0.90", "risk", "auroc", 0.90),
        ("the same with 20 real steps, at least 0.95", "risk with steps", "auroc", 0.95),
        ("Spearman within set-ups from initialization, at least 0.60", "learned", "spearman", 0.60),
        ("the same with 20 real steps, at least 0.75", "learned with steps", "spearman", 0.75),
        ("(the score fitted to failing, Spearman with steps)", "risk with steps", "spearman", 0.75),
        ("(loss after 20 steps, Spearman)", "loss after 20 steps", "spearman", math.inf),
        ("(reputation elsewhere, Spearman)", "reputation elsewhere", "spearman", math.inf),
        ("(reputation on the development part, Spearman)", "reputation, development", "spearman", math.inf),
    ]
    tables = []
    for group, title in (("fresh", "the clean test"), ("before", "before it")):
        names = [name for name in cards if name.startswith(group)]
        heads = [f"{title}{name.removeprefix(group).replace(':', ', ')} ({cards[name].rows})" for name in names]
        lines = [f"| goal | {' | '.join(heads)} |", "|---|" + "---|" * len(names)]
        for text, name, metric, least in goals:
            found = [getattr(cards[part][name], metric) for part in names]
            cells = [str(v) + (" met" if v.mean >= least else "") if v else "-" for v in found]
            lines.append(f"| {text} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def misses(rows: Path) -> str:
    """Which trainings the learned scores got most wrong, counted by what they have in common."""
    what, _, everything = load(rows)
    clean = members(what, everything, "fresh")
    listed = {e.row["id"] for e in clean}
    before = [e for e in members(what, everything, "held-out") if e.row["id"] not in listed]
    found = []
    for part, held in (("clean test", clean), ("held out before", before)):
        for name, formula in evidence.load().scores.items():
            expected = {e.row["id"]: formula.expected(e.row) for e in held}
            limit = sorted(expected.values())[sum(e.fails for e in held)]
            kinds = {
                "failed, though expected to train": [e for e in held if e.fails and expected[e.row["id"]] >= limit],
                "trained, though expected to fail": [e for e in held if not e.fails and expected[e.row["id"]] < limit],
            }
            for title, wrong in kinds.items():
                found.append(f"{part}, {name}: {len(wrong)} of {len(held)} {title}")
                for column in ("norm", "net", "data", "lr", "batch_size", "depth"):
                    counts = Counter(e.row[column] for e in wrong)
                    all_of = Counter(e.row[column] for e in held)
                    top = sorted(counts, key=lambda v: -counts[v] / all_of[v])[:5]
                    found.append(f"  {column:10} " + ", ".join(f"{v} {counts[v]}/{all_of[v]}" for v in top))
    return "\n".join(found)


def rerun(rows: Path) -> str:
    """Run one set-up again and compare: features, accuracies, and what another seed changes."""
    what, table, _ = load(rows)
    first = next(r for r in table if r["seed"] == 0 and str(r["net"]).startswith("mlp") and "Xeon" in r["hardware"])
    keys = (*strata_columns(what), "seed")
    chosen = [r for r in table if all(r[k] == first[k] for k in keys)]
    trials = {t.id: t for t in what.trials}
    moved, features, labels = [], [], 0
    for row in chosen:
        outcome = study.execute(trials[row["id"]])
        again = outcome.result
        moved.append(abs(again["outcome"]["mean_accuracy"] - row["outcome.mean_accuracy"]))
        features.append(abs(again["init"]["cosine_pooled"] - row["init.cosine_pooled"]))
        labels += again["verdict"] == row["verdict"]
    seeds: dict[tuple[object, ...], list[float]] = {}
    for row in table:
        seeds.setdefault(tuple(row[k] for k in (*strata_columns(what), "norm")), []).append(
            row["outcome.mean_accuracy"]
        )
    spread = [abs(a - b) for v in seeds.values() for a, b in pairwise(v)]
    here = " ".join(f"{k}={first[k]}" for k in keys)
    return (
        f"{len(chosen)} trials of {here}, run on {first['hardware']}, again on {hardware()}:\n"
        f"same verdict {labels} of {len(chosen)}; pooled cosine at initialization differs by at most "
        f"{max(features):.1e}; mean accuracy by at most {max(moved):.4f}, {sum(moved) / len(moved):.4f} on average.\n"
        f"Two seeds of one trial differ by {sum(spread) / len(spread):.4f} on average ({len(spread)} pairs)."
    )


def noise(rows: Path) -> str:
    """Measure the batch noise of every trial anew, and put it in the place of the value that the rows hold.

    The rows come from an estimate that drew new batches for it, four views of every sample. What is measured is kept in
    results/noise-again.jsonl, one line for each network, batch size and seed, so that the run can be taken up again.
    """
    what, table, _ = load(rows)
    keys = ("net", "norm", "depth", "data", "batch_size", "seed")
    file = HERE / "results" / "noise-again.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    again = {tuple(one[k] for k in keys): one["nu"] for one in map(json.loads, lines)}
    wanted = {tuple(row[k] for k in keys): row for row in table if row.get("init.batch_noise")}
    with file.open("a") as out:
        for key in sorted(wanted.keys() - again.keys(), key=lambda k: hashlib.sha256(repr(k).encode()).hexdigest()):
            again[key] = batch_noise(**dict(zip(keys, key, strict=True)))
            out.write(json.dumps({**dict(zip(keys, key, strict=True)), "nu": short(again[key])}) + "\n")
            out.flush()
    new = []
    for row in table:
        nu = again.get(tuple(row[k] for k in keys))
        new.append(row if nu is None else {**row, "init.batch_noise": nu, "axes.N": nu})
    pairs = [(again[key], float(row["init.batch_noise"])) for key, row in wanted.items()]
    ratios = sorted(new / old for new, old in pairs if math.isfinite(new) and math.isfinite(old))
    low, middle, high = (ratios[int(q * (len(ratios) - 1))] for q in (0.05, 0.5, 0.95))
    found = [
        f"{len(ratios)} networks: present estimate / that of the rows {middle:.2f}, "
        f"{low:.2f} to {high:.2f} in nine of ten"
    ]
    judged = [(rejudge(a), rejudge(b)) for a, b in zip(table, new, strict=True) if "series.ms" in a]
    for i, basis in enumerate(("from initialization", "with 20 steps")):
        moved = Counter(f"{a[i]} -> {b[i]}" for a, b in judged if a[i] != b[i])
        said = ", ".join(f"{move} {n}" for move, n in moved.most_common()) or "none"
        found.append(f"labels {basis}, of {len(judged)}: {said}")
    cards = [{part: scorecard(what, t, part=part) for part in ("held-out", "fresh")} for t in (table, new)]
    for part in cards[0]:
        for name in ("verdict", "verdict with steps", "batch noise", *PUBLISHED):
            a, b = (card[part][name] for card in cards)
            found.append(f"{part:9} {name:20} Spearman {a.spearman} -> {b.spearman}  AUROC {a.auroc} -> {b.auroc}")
    return "\n".join(found)


loaded = cache(datasets.load)

#: The fitted scores, as the score card calls them.
PUBLISHED = ("learned, probe only", "learned", "risk", "learned with steps", "risk with steps")


def batch_noise(*, net: str, norm: str, depth: int, data: str, batch_size: int, seed: int) -> float:
    """Nu as a trial measures it."""
    samples = loaded(data)
    source = net_of(net, depth)
    built = sources.build(source, norm, in_shape=samples.in_shape, classes=samples.classes, seed=seed)
    count = max(2, -(-32 // batch_size)) * batch_size
    seen = probe.profile(
        built.module, datasets.batch(samples, count, seed=seed), batch_size=batch_size, level="light",
        batch_noise=True, seed=seed,
    )  # fmt: skip
    return seen.batch_noise if seen.batch_noise is not None else math.nan


def main() -> None:
    """Command line."""
    commands: dict[str, Callable[[Path], str]] = {
        "ideas": ideas,
        "cutoffs": cutoffs,
        "publish": publish,
        "misses": misses,
        "rerun": rerun,
        "fresh": fresh,
        "noise": noise,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--rows", type=Path, default=ROWS, help="a row file or a store")
    args = parser.parse_args()
    print(commands[args.command](args.rows))


if __name__ == "__main__":
    main()
