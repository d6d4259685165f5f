"""Small pictures with a mask laid over them, from data URIs: nothing is fetched."""

from __future__ import annotations

from layerscope.errors import LayerscopeError
from layerscope.report.markup import Html, el, esc, join


def image_with_mask(image: str, mask: str | None = None, *, alt: str, caption: object = "", width: int = 128) -> Html:
    """An image with a (partly transparent) mask image over it.

    Args:
        image: a ``data:image/png;base64,...`` URI.
        mask: another one, stretched over the image; None for no mask.
        alt: what is to be seen, for those who cannot see it.
        caption: a line below.
        width: pixels on the page; pixels of a small image stay square.

    Raises:
        LayerscopeError: something other than an image data URI, which would make the page reach outside.
    """
    for uri in (image, mask):
        if uri is not None and not uri.startswith("data:image/"):
            raise LayerscopeError(f"expected a data:image/... URI, so that the page stays one file; got {uri[:40]!r}")
    layers = [el("img", src=image, alt=alt, width=width)]
    if mask is not None:
        layers.append(el("img", src=mask, alt=""))
    return el("figure", el("span", *layers, class_="ls-stack"), el("div", esc(caption)) if caption else "")


def images(*pictures: Html) -> Html:
    """Pictures side by side, wrapping at the page's edge."""
    return el("div", join(pictures), class_="ls-images")
