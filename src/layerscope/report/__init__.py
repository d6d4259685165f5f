"""Reports that one would rather look at than read: terminal text, notebook cells, one self-contained HTML page.

Every result of the package shows itself through this room (``print(result)``, ``result.to_html(path)``). Its pieces
(page, tables, charts) are public, so that any other result can be shown the same way::

    from layerscope import report
    lines = [report.Line("batch", [0.9, 0.5, 0.3]), report.Line("layer", [1.0, 0.8, 0.7])]
    chart = report.line_chart(lines, x_title="epoch", y_title="loss")
    document = report.page("Two runs", chart, report.paragraph("Good: a steep fall."))

``report.register_view`` makes a type of result show itself: see :mod:`layerscope.report.views`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.report.charts.bars import bars as bars
    from layerscope.report.charts.frame import Guide as Guide
    from layerscope.report.charts.images import image_with_mask as image_with_mask
    from layerscope.report.charts.images import images as images
    from layerscope.report.charts.lines import Line as Line
    from layerscope.report.charts.panels import View as View
    from layerscope.report.charts.panels import figure as figure
    from layerscope.report.charts.plain import heatmap as heatmap
    from layerscope.report.charts.plain import line_chart as line_chart
    from layerscope.report.charts.scatter import Point as Point
    from layerscope.report.charts.scatter import scatter as scatter
    from layerscope.report.charts.tables import table as table
    from layerscope.report.console import print_result as print_result
    from layerscope.report.console import progress as progress
    from layerscope.report.document import page as page
    from layerscope.report.document import paragraph as paragraph
    from layerscope.report.document import section as section
    from layerscope.report.markup import Html as Html
    from layerscope.report.markup import el as el
    from layerscope.report.markup import esc as esc
    from layerscope.report.markup import join as join
    from layerscope.report.styled import Lines as Lines
    from layerscope.report.styled import Piece as Piece
    from layerscope.report.views import register_view as register_view
    from layerscope.report.views import to_fragment as to_fragment
    from layerscope.report.views import to_text as to_text
    from layerscope.report.views import write_html as write_html

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "bars": "charts.bars",
        "Guide": "charts.frame",
        "image_with_mask": "charts.images",
        "images": "charts.images",
        "Line": "charts.lines",
        "View": "charts.panels",
        "figure": "charts.panels",
        "heatmap": "charts.plain",
        "line_chart": "charts.plain",
        "Point": "charts.scatter",
        "scatter": "charts.scatter",
        "table": "charts.tables",
        "print_result": "console",
        "progress": "console",
        "Html": "markup",
        "el": "markup",
        "esc": "markup",
        "join": "markup",
        "page": "document",
        "paragraph": "document",
        "section": "document",
        "Lines": "styled",
        "Piece": "styled",
        "register_view": "views",
        "to_fragment": "views",
        "to_text": "views",
        "write_html": "views",
    },
)
