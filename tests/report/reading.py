"""Reading HTML back strictly: balanced tags, unique ids, references that resolve, nothing fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"br", "hr", "img", "input", "meta"}
#: Attributes by which a page reaches outside.
REACHING = ("src", "href", "action", "srcset", "data", "poster", "xlink:href")


class Page(HTMLParser):
    """A parsed page; raises on anything unbalanced."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}> at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """Everything a reader sees, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, class_: str = "") -> list[dict[str, str | None]]:
        """Attributes of every such element."""
        return [a for t, a in self.tags if t == tag and (not class_ or class_ in (a.get("class") or "").split())]


def check(markup: str) -> Page:
    """Parse and hold the page to what every report promises."""
    page = Page(markup)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for tag, attributes in page.tags:
        for name in REACHING:
            target = attributes.get(name)
            if target is not None:
                assert target.startswith(("#", "data:image/")), f"<{tag} {name}={target!r}> reaches outside"
                assert not target.startswith("#") or target[1:] in ids, (
                    f"<{tag}> refers to {target}, which is not there"
                )
        if tag == "label":
            assert attributes["for"] in ids
        for name, value in attributes.items():
            if name in ("d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
                assert not re.search(r"nan|inf|none", str(value), re.IGNORECASE), f"<{tag} {name}={value!r}>"
    assert not re.search(r"https?:|url\(|@import", markup), "a link or an import"
    return page
