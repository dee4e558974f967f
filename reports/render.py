"""From typed rows to ``index.html``, ``index.md`` and SVG figures. No GPU, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from reports import figures, grids, story
from reports.collect import Tables, write_tables
from reports.glossary import glossary
from reports.roofline import NAMED, roofline
from tconv import svg
from tconv.problem import Problem

TEMPLATES = Path(__file__).parent / "templates"
PUBLISHED = Path(__file__).parent / "published"
DATA = ("layers.csv", "trials.csv", "space.csv", "map.csv", "about.json")
PAGES = {"index.html": "index.html.j2", "index.md": "index.md.j2"}


@dataclass(frozen=True)
class Picture:
    """A figure as both pages show it."""

    name: str
    title: str
    caption: str
    svg: str

    @property
    def file(self) -> str:
        return f"{self.name}.svg"


def default_folder(tables: Tables) -> Path:
    """``published/<gpu>`` for measurements; predictions lie beside it under a name that says so."""
    suffix = "-predicted" if tables.about.kind == "predicted" else ""
    return PUBLISHED / f"{tables.about.target}{suffix}"


def render(tables: Tables, folder: Path) -> list[Path]:
    """Write the report into ``folder``, its tables included; returns the files, pages first."""
    content = _content(tables)
    pictures = [picture for group in content["figures"].values() for picture in group]
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, tables)
    for picture in pictures:
        (folder / picture.file).write_text(svg.alone(picture.svg), encoding="utf-8")
    for name, template in PAGES.items():
        text = _environment(html=name.endswith("html")).get_template(template).render(content)
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")
    return [folder / name for name in (*PAGES, *DATA, *(picture.file for picture in pictures))]


def _environment(html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
    )
    # A bar within a cell would end it; an angle bracket would be read as a tag.
    escapes = str.maketrans({"|": "\\|", "<": "&lt;", "\n": " "})
    environment.filters["cell"] = lambda text: str(text).translate(escapes)
    return environment


def _content(tables: Tables) -> dict[str, Any]:
    """What both templates are given."""
    about = tables.about
    by_suite = [
        (suite, grids.layer_grid(tables, [row for row in tables.layers if row.suite == suite]))
        for suite in story.suites(tables)
    ]
    return {
        "title": f"tconv on {about.target} ({about.product}): {about.kind}",
        "kind": about.kind,
        "verdict": story.verdict(tables),
        "facts": _facts(tables),
        "passes": grids.pass_grid(tables),
        "notes": _notes(tables),
        "layers": by_suite,
        "search": grids.search_grid(tables),
        "figures": {"roofline": _roofline_pictures(tables), "tuner": _tuner_pictures(tables)},
        "glossary": glossary(about.kind),
        "commands": about.commands,
        "files": DATA,
        "style": (TEMPLATES / "style.css").read_text(encoding="utf-8"),
    }


def _facts(tables: Tables) -> list[tuple[str, str]]:
    about = tables.about
    used = dict.fromkeys(row.dtype for row in tables.layers)
    peaks = [f"{about.peaks[d]:g} TFLOP/s {d}" for d in used if d in about.peaks]
    origin = {
        "predicted": "predicted, by the tuner's model from code compiled for this target; "
        "nothing here was measured",
        "measured": "measured on this GPU",
    }
    return [
        ("Target", f"{about.product} ({about.arch}), {about.processors} processors"),
        ("Peaks, the vendor's", ", ".join([*peaks, f"{about.bandwidth_gbps:g} GB/s"])),
        ("Times are", origin[about.kind]),
        ("Versions", about.versions or "not recorded"),
        ("Date", about.date),
    ]


def _notes(tables: Tables) -> list[str]:
    """What is missing, said plainly."""
    notes = []
    told = {row.problem.key for row in tables.layers if row.filters is not None}
    failed = sorted({trial.problem for trial in tables.trials} - told)
    if failed:
        named = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        notes.append(f"Problems of which no candidate passed: {len(failed)} ({named}).")
    if tables.layers and not tables.trials:
        notes.append("The tuner's trials are missing: resources and reasons cannot be shown.")
    layers = {(row.suite, row.layer) for row in tables.layers}
    if len(layers) > NAMED:
        notes.append(
            f"Of {len(layers)} layers the roofline names {NAMED}, the bars show {figures.BARS}."
        )
    return notes


def _picture(name: str, title: str, caption: str, figure: Figure | None) -> list[Picture]:
    if figure is None:
        return []
    return [Picture(name, title, f"{title}. {caption}", svg.as_svg(figure, name, title))]


def _roofline_pictures(tables: Tables) -> list[Picture]:
    kind = tables.about.kind
    under = (
        "Each layer stands over its name, a mark a pass. Under the slope memory is the limit, "
        "under the flat roof arithmetic is."
    )
    least = "100% is the least time that the machine's peaks allow the layer."
    return [
        *_picture("roofline", f"Roofline, {kind}", under, roofline(tables)),
        *_picture("shares", f"Share of the roofline, {kind}", least, figures.shares(tables)),
    ]


def _tuner_pictures(tables: Tables) -> list[Picture]:
    kind = tables.about.kind
    flat = (
        "A thin line a problem, and the geometric mean of all. A line that is flat from the start "
        "had its best tile first in the ranking."
    )
    pictures = _picture("progress", f"Best so far, {kind}", flat, figures.progress(tables))
    source = (
        "by the model alone, before anything was compiled"
        if kind == "predicted"
        else "of what was measured; an empty cell was not"
    )
    for number, key in enumerate(figures.mapped_problems(tables), 1):
        problem = Problem.from_key(key)
        shape = problem.geometry
        caption = (
            f"On {shape.input_volume}, batch {shape.batch}: the best milliseconds for each block "
            f"{source}, whatever the other choices. The winner's blocks are marked."
        )
        title = f"Tile map, {kind}: {problem.direction} of {shape.describe()}"
        pictures += _picture(f"tiles-{number}", title, caption, figures.tile_map(tables, key))
    return pictures
