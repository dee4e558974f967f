"""Render typed rows to ``index.html``, ``index.md`` and SVG figures, without GPU or network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports import trust
from reports.page import Picture, Section
from reports.row_files import read_rows
from reports.rows import CauseRow
from reports.sections import facts, first_screen, notes, reproduce, sections, verdict
from reports.tables import Tables, tables_text
from tconv import svg
from tconv.extras import extra
from tconv.files import in_checkout, replace_all

with extra("reports"):
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
PUBLISHED = Path(__file__).parent / "published"
TYPES = ("html", "md")
INDEX = "index"


def default_folder(tables: Tables) -> Path:
    """Return the report's folder: ``<gpu>`` for measurements, ``<gpu>-predicted`` for predictions.

    In a checkout it is among the published reports, for an installed package in the current folder.
    """
    suffix = "-predicted" if tables.about.kind == "predicted" else ""
    folder = PUBLISHED if in_checkout() else Path("reports")
    return folder / f"{tables.about.target}{suffix}"


def render(tables: Tables, folder: Path) -> list[Path]:
    """Write the report and its tables into ``folder``; return the paths, pages first.

    Hand-written causes in the folder's ``causes.csv`` are kept if ``tables`` has none.

    Raises:
        RowError: if ``causes.csv`` cannot be read.
        OSError: if a file cannot be written; an existing report stays intact.
    """
    causes = folder / "causes.csv"
    if not tables.causes and tables.about.kind == "measured" and causes.exists():
        tables = replace(tables, causes=read_rows(causes, CauseRow))
    chapters = sections(tables)
    files = pages_text(_content(tables), chapters)
    if tables.about.kind == "predicted":
        files |= pages_text(trust.content(), trust.chapters(), trust.PAGE)
    return _write({**files, **tables_text(tables)}, folder)


def write_pages(content: dict[str, Any], chapters: Sequence[Section], folder: Path) -> list[Path]:
    """Write both pages and the figures of ``chapters``; return the paths, pages first.

    Raises:
        OSError: if a file cannot be written; existing pages stay intact.
    """
    return _write(pages_text(content, chapters), folder)


def pages_text(
    content: dict[str, Any], chapters: Sequence[Section], stem: str = INDEX
) -> dict[str, str]:
    """Return both pages, named ``stem``, and the figures by file name."""
    files, style = {}, (TEMPLATES / "style.css").read_text(encoding="utf-8")
    for kind in TYPES:
        template = _environment(html=kind == "html").get_template(f"index.{kind}.j2")
        given = {"trust": "", **content, "sections": chapters, "style": style}
        files[f"{stem}.{kind}"] = template.render(given).rstrip() + "\n"
    for picture in (part for each in chapters for part in each.parts if isinstance(part, Picture)):
        files[picture.file] = svg.alone(picture.svg)
    return files


def _write(files: Mapping[str, str], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / name: text for name, text in files.items()}
    replace_all(paths)
    return list(paths)


def _environment(html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
    )
    # A bar would end the cell, an angle bracket would start a tag.
    escapes = str.maketrans({"|": "\\|", "<": "&lt;", "\n": " "})
    environment.filters["cell"] = lambda text: str(text).translate(escapes)
    return environment


def _content(tables: Tables) -> dict[str, Any]:
    """Return the context of both templates."""
    about = tables.about
    return {
        "title": f"tconv on {about.target} ({about.product}): {about.kind}",
        "verdict": verdict(tables),
        "facts": facts(tables),
        "first": first_screen(tables),
        "notes": notes(tables),
        "trust": trust.PAGE if about.kind == "predicted" else "",
        "commands": about.commands,
        "reproduce": reproduce(tables),
        "files": tables.files,
    }
