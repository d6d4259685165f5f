"""The table of the language-model study, from its committed rows; verdicts by the present rules.

layerscope study run papers/beyond-batchnorm/language.toml
layerscope study export papers/beyond-batchnorm/language.toml papers/beyond-batchnorm/results/language.jsonl.gz
python papers/beyond-batchnorm/language.py
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

from layerscope import study
from layerscope.study import rowfile
from layerscope.study.rejudge import rejudge
from layerscope.study.store import Row

ROWS = Path(__file__).parent / "results" / "language.jsonl.gz"


def loss(rows: list[Row], lr: float) -> str:
    """Loss in nats a character over the last steps, mean over seeds; how many seeds diverged, if any did."""
    mine = [r.result["outcome"] for r in rows if r.params["lr"] == lr]
    broken = sum(bool(o["diverged"]) for o in mine)
    finals = [float(o["final_loss"]) for o in mine if not o["diverged"]]
    text = f"{mean(finals):.2f}" if finals and all(map(math.isfinite, finals)) else ""
    return f"{text} ({broken} of {len(mine)} diverged)".strip() if broken else text


def line(net: str, norm: str, rows: list[Row]) -> str:
    """One row of the table."""
    init = rows[0].result["init"]
    place = net.split("placement=")[1].replace(",branch=", ", ")
    verdicts = "/".join(dict.fromkeys(rejudge(flat)[0] for flat in study.flatten(rows)))
    token = init["cosine_token"]
    rates = sorted({float(r.params["lr"]) for r in rows})
    cells = [place, norm, verdicts, "" if token is None else f"{token:.2f}", *(loss(rows, lr) for lr in rates)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    rows = [r for r in rowfile.read(ROWS) if r.state == "done"]
    rates = sorted({float(r.params["lr"]) for r in rows})
    print("| placement | norm | verdict | token cosine | " + " | ".join(f"loss, rate {lr:g}" for lr in rates) + " |")
    print("|---" * (4 + len(rates)) + "|")
    for net, norm in dict.fromkeys((str(r.params["net"]), str(r.params["norm"])) for r in sorted(rows, key=_order)):
        print(line(net, norm, [r for r in rows if r.params["net"] == net and r.params["norm"] == norm]))


def _order(row: Row) -> tuple[str, str]:
    return str(row.params["net"]), str(row.params["norm"])


if __name__ == "__main__":
    main()
