"""Text for a terminal as lines of styled pieces: the same layout with colour and without."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

#: Width that every report in text keeps to.
WIDTH = 80
#: A narrower terminal gets narrower reports, down to this.
NARROWEST = 40
_width: ContextVar[int] = ContextVar("width", default=WIDTH)

#: What our own sentences use, in letters that every terminal has.
_ASCII = str.maketrans({
    "×": "x", "·": "*", "±": "+/-", "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "…": "...",
    "’": "'", "“": '"', "”": '"', "ν": "nu", "²": "^2", "∞": "inf", "÷": "/", "≈": "~", "\u00a0": " ",
})  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Text and the style (rich's words, such as ``bold red``) it has on a colour terminal."""

    text: str
    style: str = ""


@contextmanager
def no_wider_than(columns: int) -> Iterator[None]:
    """Texts made inside fit a terminal of so many columns."""
    token = _width.set(max(NARROWEST, min(WIDTH, columns)))
    try:
        yield
    finally:
        _width.reset(token)


@dataclass
class Lines:
    """Lines of pieces, in ASCII and at most ``width`` characters wide."""

    lines: list[tuple[Piece, ...]] = field(default_factory=list)
    width: int = field(default_factory=_width.get)

    def __str__(self) -> str:
        return "\n".join("".join(p.text for p in line).rstrip() for line in self.lines)

    def add(self, *pieces: str | Piece) -> None:
        """One line; what does not fit is cut off."""
        room, kept = self.width, []
        for piece in pieces:
            piece = Piece(piece) if isinstance(piece, str) else piece
            text = ascii_only(piece.text)[:room]
            room -= len(text)
            kept.append(Piece(text, piece.style))
        self.lines.append(tuple(kept))

    def paragraph(self, text: str, *, first: str = "", rest: str | None = None, style: str = "") -> None:
        """Wrapped text; ``first`` stands before the first line, ``rest`` before the others."""
        first, rest = ascii_only(first), ascii_only(first if rest is None else rest)
        wrapped = textwrap.wrap(
            ascii_only(" ".join(text.split())),
            self.width,
            initial_indent=first,
            subsequent_indent=rest,
            break_on_hyphens=False,
        )
        for line in wrapped:
            self.lines.append((Piece(line, style),))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str | Piece]], *, left: int = 1) -> None:
        """Columns as wide as they need, the first ``left`` of them flush left, squeezed from the left if too wide."""
        body = [[Piece(c) if isinstance(c, str) else c for c in row] for row in rows]
        body = [[Piece(ascii_only(c.text), c.style) for c in row] for row in body]
        widths = [max(map(len, (h, *(r[i].text for r in body)))) for i, h in enumerate(header)]
        excess = sum(widths) + 2 * (len(widths) - 1) - self.width
        for i in range(len(widths)):
            cut = min(max(excess, 0), max(widths[i] - max(8, len(header[i])), 0))
            widths[i], excess = widths[i] - cut, excess - cut

        fitting = [squeeze_apart([row[i].text for row in body], width) for i, width in enumerate(widths)]

        def place(piece: Piece, i: int) -> Piece:
            text = fitting[i].get(piece.text) or squeeze(piece.text, widths[i])
            text = text.ljust(widths[i]) if i < left else text.rjust(widths[i])
            return Piece(text + ("  " if i < len(widths) - 1 else ""), piece.style)

        self.add(*(place(Piece(h, "dim"), i) for i, h in enumerate(header)))
        for row in body:
            self.add(*(place(piece, i) for i, piece in enumerate(row)))


def squeeze(text: str, width: int, head: int | None = None) -> str:
    """``text`` in ``width`` characters: both ends kept, ``head`` of them in front, ``..`` for what is left out.

    >>> squeeze("stage3.blocks.8.conv2", 12)
    'stage3..onv2'
    """
    if len(text) <= width:
        return text
    head = (width - 2 + 1) // 2 if head is None else head
    return text[:head] + ".." + text[len(text) - (width - 2 - head) :]


def squeeze_apart(texts: Iterable[str], width: int) -> dict[str, str]:
    """Every text in ``width`` characters, cut where the most of them stay apart, nearest to the middle.

    >>> squeeze_apart(["stages.1.blocks.0.norm1", "stages.2.blocks.0.norm1"], 12)
    {'stages.1.blocks.0.norm1': 'stages.1..m1', 'stages.2.blocks.0.norm1': 'stages.2..m1'}
    """
    texts = list(dict.fromkeys(texts))
    middle = (width - 2 + 1) // 2
    made = {text: squeeze(text, width) for text in texts}
    for head in sorted(range(width - 1), key=lambda head: abs(head - middle)):
        if len(set(made.values())) == len(texts):
            break
        tried = {text: squeeze(text, width, head) for text in texts}
        if len(set(tried.values())) > len(set(made.values())):
            made = tried
    return made


def ascii_only(text: str) -> str:
    """``text`` in ASCII: known signs by their names, accents dropped, anything else by its code point.

    Line breaks and control characters become spaces: a name must not move the cursor.

    >>> ascii_only("×2 → café")
    'x2 -> cafe'
    """
    text = unicodedata.normalize("NFKD", text.translate(_ASCII))
    text = "".join(c if c.isprintable() or c in "\ud800\udfff" else " " for c in text if not unicodedata.combining(c))
    return text.encode("ascii", "backslashreplace").decode("ascii")
