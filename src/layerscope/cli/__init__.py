"""The command line: a table of commands, each loaded when it is asked for. No logic lives here, and no torch.

Every command is a plain function with annotated, documented parameters; tyro turns it into options. A group
(``layerscope encrypted cost``) is a module with a ``COMMANDS`` table of such functions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from layerscope.errors import LayerscopeError, did_you_mean

#: command -> (module, one line). A module holds either ``COMMAND`` (one function), ``COMMANDS`` (a group) or
#: ``PLAIN`` (a function of the words after the command).
TABLE: dict[str, tuple[str, str]] = {
    "compare": ("compare", "which normalization layer will train, which will not, and why"),
    "diagnose": ("diagnose", "one network as it is: where its activations or gradients go wrong"),
    "show": ("show", "a comparison that was written with --json: as a table and as a page"),
    "demo": ("demo", "the main job on bundled data: nine norms in two deep networks"),
    "study": ("study", "run, follow and resume a grid of probes and trainings"),
    "score": ("score", "how often verdicts were right on a study's trainings"),
    "encrypted": ("encrypted", "costs of encrypted inference and how to cut them; client and server"),
    "focus": ("focus", "skip the pixels that do not matter, or say that it does not pay"),
    "medic": ("medic", "remove a backdoor by cloning what matters, and judge every removal"),
    "sampling": ("sampling", "stochastic units that normalize themselves"),
    "reproduce": ("reproduce", "run the study behind a paper of this checkout, such as medic"),
    "norms": ("norms", "list the normalization layers and their parameters"),
    "nets": ("nets", "list the reference networks"),
    "data": ("data", "list the data sets"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; wrong input ends with one sentence on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(args)
    except LayerscopeError as error:
        print(f"layerscope: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("layerscope: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("layerscope"))
        return
    if args[0] not in TABLE:
        raise LayerscopeError(f"no command {args[0]!r}: {did_you_mean(args[0], TABLE)}")
    module = import_module(f"layerscope.cli.{TABLE[args[0]][0]}")
    if hasattr(module, "PLAIN"):
        module.PLAIN(args[1:])
        return
    import tyro

    prog = f"layerscope {args[0]}"
    if hasattr(module, "COMMANDS"):
        tyro.extras.subcommand_cli_from_dict(module.COMMANDS, prog=prog, args=args[1:])
    else:
        tyro.cli(module.COMMAND, prog=prog, args=args[1:])


def _overview() -> str:
    width = max(map(len, TABLE))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in TABLE.items()]
    return (
        "layerscope: which normalization layer will train, which will not, and why\n\n"
        "usage: layerscope COMMAND [options]     (layerscope COMMAND --help tells more)\n\n" + "\n".join(lines)
    )
