"""Export matplotlib figures: PNG bytes for files, inline SVG in the page's own colors for HTML."""

import io
import re
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

BEFORE, AFTER = "#c9d3de", "#2f6f9f"
"""Colors of a quantity before and after pruning."""

ACCENT = "#b5651d"

INK, LINE, MUTED = "#010203", "#010204", "#010205"
"""Placeholder colors in an SVG: text, grid lines, and lines of less weight."""

_CSS_COLORS = {
    BEFORE: "var(--before)", AFTER: "var(--after)", ACCENT: "var(--accent)", INK: "var(--ink)", LINE: "var(--line)",
    MUTED: "var(--muted)",
}  # fmt: skip

_PAGE_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "diffprune", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": LINE, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip

page_style = rc_context(_PAGE_STYLE)


def png_of(figure: Figure) -> bytes:
    """Return the figure as a PNG at 144 dots per inch, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def svg_of(figure: Figure, description: str) -> str:
    """Return the figure as an `<svg>` element for an HTML page, transparent, with CSS variables for colors.

    description: text alternative for screen readers. The page defines the variables of `_CSS_COLORS`.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for color, variable in _CSS_COLORS.items():
        body = body.replace(color, variable)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    return f'<svg class="plot" {view_box[0]} role="img" aria-label="{escape(description)}">{body}'
