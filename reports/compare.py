"""Compare two layer tables: what became slower or faster, beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Literal

from reports.figures import BARS, canvas
from reports.page import Grid, Part, Picture, Section, Text
from reports.render import write_pages
from reports.row_files import RowError, read_rows
from reports.rows import LayerRow, number_text
from tconv import svg
from tconv.extras import extra
from tconv.svg import INK, STYLE

with extra("reports"):
    import matplotlib as mpl
    from matplotlib.figure import Figure

LEAST = 0.01  # share of the time below which a change is ignored, however narrow the quantiles are
SLOWER, FASTER = "#d55e00", "#0072b2"
Change = Literal["slower", "faster", "within noise"]
Key = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """One layer's pass, before and after."""

    before: LayerRow
    after: LayerRow

    @property
    def ratio(self) -> float:
        """The new time over the old one: above 1 is slower."""
        return (self.after.tconv_ms or 0.0) / (self.before.tconv_ms or 1.0)

    @property
    def change(self) -> Change:
        """Slower or faster only if the middle 60% of the two measurements do not overlap."""
        if abs(self.ratio - 1) < LEAST:
            return "within noise"
        (low, high), (new_low, new_high) = (_span(row) for row in (self.before, self.after))
        if new_low > high:
            return "slower"
        return "faster" if new_high < low else "within noise"

    @property
    def name(self) -> str:
        row = self.after
        return f"{row.suite} {row.layer} {row.direction} {row.dtype}"


@dataclass(frozen=True)
class Comparison:
    """All pairs of rows, and the rows that only one of the files has."""

    pairs: tuple[Pair, ...]
    only_before: tuple[LayerRow, ...]
    only_after: tuple[LayerRow, ...]

    def changed(self, change: Change) -> list[Pair]:
        """Return the pairs of one kind, largest change first."""
        held = [pair for pair in self.pairs if pair.change == change]
        return sorted(held, key=lambda pair: pair.ratio, reverse=change == "slower")

    def regressions(self, beyond: float) -> list[Pair]:
        """Return the pairs that are slower, beyond noise, by more than a share of the old time."""
        return [pair for pair in self.changed("slower") if pair.ratio > 1 + beyond]


def _span(row: LayerRow) -> tuple[float, float]:
    """Return a time's quantiles; without any (predictions), the time itself for both."""
    time = row.tconv_ms or 0.0
    return row.tconv_ms_p20 or time, row.tconv_ms_p80 or time


def share_of(text: str) -> float:
    """Return the share that a text such as ``5%`` means.

    >>> share_of("5%")
    0.05

    Raises:
        ValueError: for anything but a percentage of at least 0.
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / 100
    except ValueError:
        value = -1.0
    if not text.strip().endswith("%") or not 0 <= value < float("inf"):
        raise ValueError(f"{text!r} is not a percentage; write 5%")
    return value


def compare(before: Path, after: Path) -> Comparison:
    """Compare the layer tables ``before`` and ``after`` row by row.

    Raises:
        RowError: naming file, row and column of an invalid value; if a row appears twice; or if one
            table is predicted and the other measured.
    """
    old, new = _by_key(before), _by_key(after)
    kinds = [{row.kind for row in table.values()} for table in (old, new)]
    if kinds[0] and kinds[1] and kinds[0] != kinds[1]:
        words = " and ".join(sorted(kinds[0] | kinds[1]))
        raise RowError(f"{before} and {after}: {words} figures; the two are never compared")
    pairs = [Pair(old[key], row) for key, row in new.items() if key in old]
    return Comparison(
        tuple(pair for pair in pairs if pair.before.tconv_ms and pair.after.tconv_ms),
        tuple(row for key, row in old.items() if key not in new),
        tuple(row for key, row in new.items() if key not in old),
    )


def _by_key(path: Path) -> dict[Key, LayerRow]:
    found: dict[Key, LayerRow] = {}
    for number, row in enumerate(read_rows(path, LayerRow), 1):
        shape = (row.batch, row.in_channels, row.in_h, row.in_w, row.filters, row.filter_h,
                 row.filter_w, row.stride, row.padding, row.dilation, row.groups)  # fmt: skip
        key = (row.suite, row.layer, row.direction, row.dtype, *map(str, shape))
        if key in found:
            words = f"{row.suite} {row.layer} {row.direction} {row.dtype} appears twice"
            raise RowError(f"{path}: row {number}, column layer: {words}")
        found[key] = row
    return found


def pairs_grid(pairs: Sequence[Pair]) -> Grid:
    """Return a table of the times before and after."""
    rows = []
    for pair in pairs:
        old, new = pair.before, pair.after
        times = [number_text(row.tconv_ms or 0.0) for row in (old, new)]
        kernels = [f"{row.family} {row.tile}" for row in (old, new)]
        if kernels[0] == kernels[1]:
            kernels[1] = "the same"
        named = [new.suite, new.layer, new.direction, new.dtype]
        rows.append([*named, *times, f"{pair.ratio - 1:+.1%}", pair.change, *kernels])
    headings = ["suite", "layer", "pass", "dtype", "ms before", "ms after", "time", "change",
                "kernel before", "kernel after"]  # fmt: skip
    return Grid(headings, rows, frozenset((0, 1, 2, 3, 7, 8, 9)), "compared")


def summary(found: Comparison) -> str:
    """Summarise the changes in a sentence or two."""
    if not found.pairs:
        return "The two tables have no layer and pass in common."
    slower, faster = found.changed("slower"), found.changed("faster")
    mean = geometric_mean([pair.ratio for pair in found.pairs])
    words = (
        f"Of {len(found.pairs)} layer passes {len(slower)} became slower and {len(faster)} faster, "
        f"beyond noise; over all, the time is {mean:.3f} of what it was (geometric mean)."
    )
    for which, rows in (("before", found.only_before), ("after", found.only_after)):
        if rows:
            words += f" {len(rows)} are only in the table {which}."
    return words


def changes_figure(found: Comparison) -> Figure | None:
    """Plot the change of each pass that changed beyond noise, as bars."""
    pairs = [*found.changed("slower"), *reversed(found.changed("faster"))][:BARS]
    if not pairs:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 1.4 + 0.3 * len(pairs))
        lengths = [100 * (pair.ratio - 1) for pair in pairs]
        colours = [SLOWER if pair.change == "slower" else FASTER for pair in pairs]
        bars = axes.barh(range(len(pairs)), lengths, 0.7, color=colours)
        axes.bar_label(bars, [f"{length:+.1f}%" for length in lengths], padding=3, fontsize=10)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(pairs)), [pair.name for pair in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.margins(x=0.15)
        axes.set_xlabel("time after over time before, change in %: to the right is slower")
        axes.set_title("What changed beyond noise")
    return figure


def render_comparison(found: Comparison, before: Path, after: Path, folder: Path) -> list[Path]:
    """Write the comparison as pages into ``folder`` and return their paths.

    Raises:
        OSError: if the folder cannot be written.
    """
    parts: list[Part] = []
    if (figure := changes_figure(found)) is not None:
        title = "What changed beyond noise"
        caption = f"{title}. The middle 60% of the two measurements have nothing in common."
        parts.append(Picture("changes", title, caption, svg.as_svg(figure, "changes", title)))
    order = [pair for change in ("slower", "faster", "within noise")
             for pair in found.changed(change)]  # type: ignore[arg-type]  # fmt: skip
    parts.append(pairs_grid(order) if order else Text("There is nothing to compare."))
    chapters = [Section("Before and after, side by side", tuple(parts))]
    for which, rows in (("before", found.only_before), ("after", found.only_after)):
        if rows:
            cells = [[r.suite, r.layer, r.direction, r.dtype] for r in rows]
            only = Grid(["suite", "layer", "pass", "dtype"], cells, frozenset(range(4)))
            chapters.append(Section(f"Only in the table {which}", (only,)))
    kinds = {pair.after.kind for pair in found.pairs}
    content = {
        "title": f"{after.name} against {before.name}: {' '.join(sorted(kinds)) or 'compared'}",
        "verdict": summary(found),
        "facts": [("Before", str(before)), ("After", str(after))],
        "first": (),
        "notes": [],
        "sections": chapters,
        "commands": (f"python -m reports compare {before} {after}",),
        "reproduce": "Rows are matched by suite, layer, pass, dtype and shape.",
        "files": (),
    }
    return write_pages(content, chapters, folder)
