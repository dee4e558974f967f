"""Tests of the lecture's interactive page in a real browser against geometry.py."""

from __future__ import annotations

import html
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tconv.geometry import ConvGeometry

PAGE = Path(__file__).parents[2] / "docs" / "interactive.html"
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
BATCH = 64

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the Chromium browser")


def dumped(page: Path, tmp_path: Path, fragment: str = "") -> str:
    """Return the document after its scripts have run."""
    run = subprocess.run(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         f"file://{page}{fragment}"],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    return run.stdout


def drawn_layers() -> list[dict[str, int]]:
    """Return random layers in the sliders' ranges, with the smallest and some that do not fit."""
    draw = random.Random(0)
    layers = [
        {"W": 7, "C": 1, "K": 1, "F": 3, "S": 3, "P": 0},
        dict.fromkeys("WCKFS", 1) | {"P": 0},
    ]
    for _ in range(200):
        layers.append({
            "W": draw.randint(1, 224), "C": draw.randint(1, 512), "K": draw.randint(1, 512),
            "F": draw.randint(1, 31), "S": draw.randint(1, 8), "P": draw.randint(0, 15),
        })  # fmt: skip
    return layers


def geometry(layer: dict[str, int]) -> ConvGeometry:
    volume = f"{layer['C']}x{layer['W']}x{layer['W']}"
    window = {"extent": layer["F"], "stride": layer["S"], "padding": layer["P"]}
    return ConvGeometry.from_lecture(volume, filters=layer["K"], batch=BATCH, **window)


def test_the_page_computes_what_geometry_does(tmp_path: Path) -> None:
    layers = drawn_layers()
    script = f"document.body.textContent = JSON.stringify({json.dumps(layers)}.map(layer))"
    page = tmp_path / "computed.html"
    page.write_text(PAGE.read_text().replace("</body>", f"<script>{script}</script></body>"))
    found = re.search(r"<body>(.*)</body>", dumped(page, tmp_path), re.S)
    assert found is not None
    existing = 0
    for layer, shown in zip(layers, json.loads(html.unescape(found[1])), strict=True):
        try:
            expected = geometry(layer)
        except ValueError:
            assert not shown["exists"], layer
            continue
        existing += 1
        assert shown["exists"]
        assert shown["out"] == expected.out_w
        assert shown["dropped"] == expected.dropped[0]
        assert shown["fits"] == (expected.dropped == (0, 0))
        assert shown["parameters"] == expected.parameters()
        assert shown["flops"] == expected.flops
        assert shown["bytes"] == expected.least_bytes(2)
    assert 100 < existing < len(layers)


def test_a_link_sets_the_sliders_and_a_misfit_is_reported(tmp_path: Path) -> None:
    shown = html.unescape(dumped(PAGE, tmp_path, "#W=7&C=1&K=1&F=3&S=3&P=0"))
    assert "(7 - 3 + 2*0)/3 + 1 = 2.33" in shown
    assert "drops 1 row and 1 column at the border" in shown
    assert "10: (3*3*1 + 1) * 1" in shown
    shown = html.unescape(dumped(PAGE, tmp_path, "#W=5&F=9&P=1"))
    assert "a 9x9 filter is larger than the padded input 7x7" in shown


def test_the_page_is_self_contained() -> None:
    """The page requests no file and no server."""
    assert not re.search(r"(src|href)\s*=|@import|url\(|fetch\(|https?:", PAGE.read_text())
