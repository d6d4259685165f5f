"""Our circuits under OpenFHE's gate bootstrapping: a second engine that knows nothing of this package.

    python papers/she/openfhe_gates.py export                    # needs layerscope: circuits, inputs, expected outputs
    python papers/she/openfhe_gates.py check --params STD128     # needs only openfhe==1.6.1.0.22.4, CPython 3.10

OpenFHE's wheels hold modules for CPython 3.8, 3.10 and (for newer systems) 3.12, this package needs 3.11, so the two
halves meet in a file. Expected outputs come from integer arithmetic, not from our simulator.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CIRCUITS = RESULTS / "openfhe-circuits.json"


def export(samples: int) -> None:
    """Write every kind of unit as a list of gates, with random inputs and what integers say."""
    from layerscope.methods.encrypted.circuits import activations
    from layerscope.methods.encrypted.circuits.gates import Builder
    from layerscope.methods.encrypted.circuits.neuron import Tap, neuron

    draw = random.Random(0)

    def signed(code: int, bits: int) -> int:
        return code - (1 << bits) if code >> (bits - 1) else code

    units: list[tuple[str, Any, list[int], Any]] = []  # name, circuit, bits of each input, outputs from input codes

    def unit(name: str, widths: list[int], make: Any, expected: Any) -> None:
        b = Builder()
        units.append((name, b.build(make(b, [b.word(w) for w in widths])), widths, expected))

    unit("relu of 5 bits", [5], lambda b, w: activations.relu(b, w[0]), lambda x: max(0, signed(x, 5)))
    unit(
        "requantize 7 bits, shift 2, to 3 bits", [7], lambda b, w: activations.requantize(b, w[0], 2, 3),
        lambda x: min(7, max(0, signed(x, 7)) >> 2),
    )  # fmt: skip
    unit("maximum of two 4-bit codes", [4, 4], lambda b, w: activations.maximum(b, *w), max)
    unit("maximum of four 3-bit codes", [3] * 4, lambda b, w: activations.maximum_tree(b, w), lambda *x: max(x))
    weights = [1, -2, 4, -1, 2, 1, -4, 2, -1]
    taps = [Tap(w, 0, 7) for w in weights]
    for kind in ("csa", "mixed", "range", "fixed16"):
        circuit = neuron(taps, bias=-5, kind=kind)
        units.append(
            (
                f"neuron of 9 taps, {kind}",
                circuit,
                [3] * 9,
                lambda *x: sum(w * c for w, c in zip(weights, x, strict=True)) - 5,
            )
        )
    made = []
    for name, circuit, widths, expected in units:
        cases = []
        for _ in range(samples):
            codes = [draw.randrange(1 << w) for w in widths]
            bits = [code >> i & 1 for code, w in zip(codes, widths, strict=True) for i in range(w)]
            out = expected(*codes) & ((1 << len(circuit.outputs)) - 1)  # two's complement where it is signed
            cases.append({"inputs": bits, "outputs": [out >> i & 1 for i in range(len(circuit.outputs))]})
        made.append({
            "name": name, "inputs": circuit.inputs, "is_and": [int(v) for v in circuit.is_and],
            "left": circuit.left.tolist(), "right": circuit.right.tolist(), "outputs": circuit.outputs.tolist(),
            "cases": cases,
        })  # fmt: skip
    CIRCUITS.write_text(json.dumps(made))
    print(f"{len(made)} circuits, {sum(len(c['is_and']) for c in made)} gates in {CIRCUITS}")


def check(params: str, cases: int) -> None:
    """Evaluate every circuit on ciphertexts and compare each output bit; every row is written as it is finished."""
    import openfhe

    context = openfhe.BinFHEContext()
    context.GenerateBinFHEContext(getattr(openfhe, params), openfhe.GINX)
    secret = context.KeyGen()
    context.BTKeyGen(secret)
    wrong = 0
    for circuit in json.loads(CIRCUITS.read_text()):
        for case in circuit["cases"][:cases]:
            # constants are the wires 0 and 1: no circuit here keeps one as the input of a gate
            signals = [None, *(context.Encrypt(secret, bit) for bit in case["inputs"])]

            def wire(number: int, signals: list[Any] = signals) -> Any:
                value = signals[number >> 1]
                return context.EvalNOT(value) if number & 1 else value

            start = time.perf_counter()
            for is_and, left, right in zip(circuit["is_and"], circuit["left"], circuit["right"], strict=True):
                gate = openfhe.AND if is_and else openfhe.XOR
                signals.append(context.EvalBinGate(gate, wire(left), wire(right)))
            seconds = time.perf_counter() - start
            got = [number & 1 if number < 2 else context.Decrypt(secret, wire(number)) for number in circuit["outputs"]]
            right_bits = sum(a == b for a, b in zip(got, case["outputs"], strict=True))
            wrong += len(got) - right_bits
            row = {
                "circuit": circuit["name"], "params": params, "gates": len(circuit["is_and"]),
                "bits": len(got), "right": right_bits, "seconds": round(seconds, 3),
            }  # fmt: skip
            with (RESULTS / "openfhe.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    print(f"{wrong} output bits differ")
    if wrong:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["export", "check"])
    parser.add_argument("--params", default="STD128", help="OpenFHE's parameter set; TOY is insecure and fast")
    parser.add_argument("--cases", type=int, default=2, help="inputs of each circuit")
    args = parser.parse_args()
    if args.what == "export":
        export(64)
    else:
        check(args.params, args.cases)


if __name__ == "__main__":
    main()
