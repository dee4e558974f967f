"""Tests that the pages show the tables' figures and label predictions."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import evolve
from typer.testing import CliRunner

from autotune.trial import Trial
from autotune.trial_store import Store
from reports.cli import app
from reports.render import PUBLISHED, default_folder, render
from reports.tables import Tables, write_tables

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")


class Page(HTMLParser):
    """Parser of a page's tables (class, headings, cells) and of tags that need a network."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[str], list[str]]] = []  # class, headings, cells
        self.title = ""
        self._open: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "table":
            self.tables.append((named.get("class") or "", [], []))
        if tag in ("td", "th"):
            self.tables[-1][1 if tag == "th" else 2].append("")
        self.links += [named[name] or "" for name in ("src", "href") if name in named]
        self.links += [named[name] or "" for name in ("xlink:href",) if name in named]
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        if tag == "title":
            self.title += data
        elif tag in ("td", "th"):
            self.tables[-1][1 if tag == "th" else 2][-1] += data


def shown_numbers(page: Page, *kinds: str) -> set[str]:
    """Return every number in the cells of the tables of these classes."""
    cells = [cell for kind, _, found in page.tables if kind in kinds for cell in found]
    return {number for cell in cells for number in NUMBER.findall(cell)}


def known_numbers(folder: Path, tables: Tables) -> set[str]:
    """Return every number in a CSV, and those that follow from a layer's shape alone."""
    text = " ".join(path.read_text(encoding="utf-8") for path in folder.glob("*.csv"))
    shapes = " ".join(f"{row.output_volume} {row.stride} {row.padding}" for row in tables.layers)
    return set(NUMBER.findall(f"{text} {shapes}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tables: Tables) -> Path:
    path = tmp_path_factory.mktemp("report")
    render(tables, path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_every_number_of_the_layer_table_is_in_the_csv(
    folder: Path, page: Page, tables: Tables
) -> None:
    numbers = shown_numbers(page, "layers", "code")
    assert len(numbers) > 40
    assert numbers <= (known := known_numbers(folder, tables)), numbers - known


def test_every_layer_is_in_the_table_with_its_time(page: Page, tables: Tables) -> None:
    cells = [cell for kind, _, found in page.tables if kind == "layers" for cell in found]
    for row in tables.layers:
        assert row.layer in cells
        assert row.tile in cells
        assert str(row.tconv_ms) in cells


def test_title_and_headings_are_labelled_predicted(page: Page) -> None:
    assert "predicted" in page.title
    headings = [word for kind, words, _ in page.tables if kind == "layers" for word in words]
    rates = [word for word in headings if re.search(r"\bms\b|TFLOP|GB/s|roofline", word)]
    assert len(rates) >= 4
    assert all(word.startswith("predicted") for word in rates)
    assert not any("measured" in word for word in headings)


def test_every_figure_is_labelled_predicted(folder: Path) -> None:
    figures = sorted(folder.glob("*.svg"))
    stems = {"roofline-lenet5", "shares-other", "progress", "tiles-1"}
    assert {figure.stem for figure in figures} >= stems
    for figure in figures:
        text = "".join(ElementTree.parse(figure).getroot().itertext())
        assert "predicted" in text, figure.name
        assert "measured" not in text, figure.name


def test_page_needs_no_network_and_no_script(folder: Path, page: Page) -> None:
    assert all(link.startswith("#") or (folder / link).is_file() for link in page.links)
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "@import" not in text
    assert "url(http" not in text


def test_ids_of_figures_are_distinct(folder: Path) -> None:
    def ids(path: Path) -> set[str]:
        return set(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8")))

    roofline, shares = ids(folder / "roofline-lenet5.svg"), ids(folder / "shares-lenet5.svg")
    assert roofline
    assert shares
    assert not roofline & shares


def test_roofline_names_every_layer(folder: Path, tables: Tables) -> None:
    for row in tables.layers:
        figure = folder / f"roofline-{row.suite}.svg"
        assert row.layer in "".join(ElementTree.parse(figure).getroot().itertext())


def test_markdown_says_the_same(folder: Path, tables: Tables) -> None:
    text = (folder / "index.md").read_text(encoding="utf-8")
    assert text.startswith("# tconv on sm_90")
    assert "predicted" in text.splitlines()[0]
    assert "| predicted ms |" in text
    assert "(roofline-lenet5.svg)" in text
    for row in tables.layers:
        assert f" {row.tconv_ms} |" in text
        assert f" {row.tile} |" in text


def test_rejections_are_counted_by_reason(page: Page) -> None:
    cells = next(cells for kind, _, cells in page.tables if kind == "search")
    at = cells.index("rejected: spills")
    assert cells[at + 1 : at + 4] == ["2", "2", "2"]


def test_same_tables_give_the_same_pages(folder: Path, tmp_path: Path, tables: Tables) -> None:
    for path in render(tables, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("undrawn")
def test_text_in_tables_is_escaped(tmp_path: Path, tables: Tables) -> None:
    odd = evolve(tables.layers[0], layer="<b>|x")
    render(replace(tables, layers=[odd]), tmp_path)
    assert "<b>|x" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;b>\\|x" in (tmp_path / "index.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_empty_report_says_what_is_missing(tmp_path: Path, tables: Tables) -> None:
    render(replace(tables, layers=[], map=[]), tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "No candidate has passed" in text
    assert "without a passing candidate: 6" in text


@pytest.mark.usefixtures("undrawn")
def test_report_without_trials_states_it(tmp_path: Path, tables: Tables) -> None:
    render(replace(tables, trials=[], space=[], map=[]), tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "trials are missing" in text
    assert "registers, compiled" not in text


def test_predictions_have_their_own_folder(tables: Tables) -> None:
    assert default_folder(tables).name == "sm_90-predicted"


def test_many_rows_are_rendered_in_time(tmp_path: Path, tables: Tables) -> None:
    rows = [
        evolve(row, layer=f"{row.layer} {number}") for number in range(350) for row in tables.layers
    ]
    render(replace(tables, layers=rows), tmp_path)
    assert "the roofline plot names 40" in (tmp_path / "index.html").read_text(encoding="utf-8")


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["render", *map(str, arguments)])
    return result.exit_code, result.output


def test_command_renders_from_the_store_and_again_from_tables(
    tmp_path: Path, trials: list[Trial]
) -> None:
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        for trial in trials:
            store.add(trial)
    code, output = invoke("--target", "sm_90", "--store", path, "--out", tmp_path / "a")
    assert code == 0, output
    code, output = invoke("--tables", tmp_path / "a", "--out", tmp_path / "b")
    assert code == 0, output
    pages = [(tmp_path / name / "index.html").read_text("utf-8") for name in ("a", "b")]
    assert pages[0] == pages[1]


@pytest.mark.usefixtures("undrawn")
def test_without_a_target_every_stored_one_gets_a_report(
    tmp_path: Path, trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.cli.default_folder", lambda c: tmp_path / c.about.target)
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        for trial in trials:
            store.add(trial)
            store.add(evolve(trial, target="sm_80"))
    code, output = invoke("--store", path)
    assert code == 0, output
    for name in ("sm_80", "sm_90"):
        assert "predicted" in (tmp_path / name / "index.html").read_text("utf-8")
    code, output = invoke("--store", path, "--out", tmp_path / "one")
    assert code == 2
    assert "sm_80, sm_90" in output


def test_unknown_target_exits_2_and_lists_what_exists(tmp_path: Path) -> None:
    code, output = invoke("--target", "sm_17", "--store", tmp_path / "none.sqlite")
    assert code == 2
    assert "sm_17" in output
    assert "sm_90, sm_100, gfx942" in output


def test_no_trials_exits_2_and_names_the_command_to_make_some(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    code, output = invoke("--target", "sm_80", "--store", path)
    assert code == 2
    assert "no predicted trials for sm_80" in output
    assert "python -m autotune tune --target sm_80" in output
    assert not path.exists()


def test_damaged_table_exits_2_and_is_named(tmp_path: Path, tables: Tables) -> None:
    write_tables(tmp_path, tables)
    path = tmp_path / "layers.csv"
    path.write_text(path.read_text().replace("lenet5,c3,dgrad", "lenet5,c3,backward"))
    code, output = invoke("--tables", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "layers.csv: row 2, column pass: 'backward'" in output
    assert not (tmp_path / "out").exists()


def test_reports_of_an_installed_package_go_to_the_current_folder(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{tables.about.target}-predicted"
    assert default_folder(tables) == PUBLISHED / name
    monkeypatch.setattr("reports.render.in_checkout", lambda: False)
    assert default_folder(tables) == Path("reports") / name
