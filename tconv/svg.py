"""Save drawings as SVG that follows the page's light or dark colours, or as PNG.

Text and lines are drawn in ``currentColor``; raster images are embedded.
"""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import Any

from tconv.extras import extra
from tconv.files import replace_all

with extra("reports"):
    import matplotlib as mpl
    from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tconv",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
# Colours for a stand-alone file, which inherits none from a page.
ALONE = (
    "<style>svg{color:#1b1f24;background:#fff}@media screen and (prefers-color-scheme:dark)"
    "{svg{color:#e6e9ee;background:#16191d}}</style>"
)


def as_svg(figure: Figure, name: str, title: str) -> str:
    """Return ``figure`` as an ``svg`` element for a page; ``name`` prefixes its ids."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def alone(svg: str) -> str:
    """Return the element as a stand-alone file with its own light and dark colours."""
    end = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:end]}{ALONE}{svg[end:]}'


def save(figure: Figure, path: Path, title: str) -> None:
    """Write ``figure`` to an .svg file that follows the viewer's colours, or to a light .png.

    Raises:
        ValueError: if the path has another suffix.
        OSError: if the file cannot be written; an existing file stays.
    """
    if path.suffix == ".svg":
        replace_all({path: alone(as_svg(figure, "drawing", title))})
    elif path.suffix == ".png":
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format="png", metadata={"Software": None, "Title": title})
        replace_all({path: buffer.getvalue()})
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}; use a .svg or a .png")
