"""Tests of the gallery: filters on our kernels, kinds of pictures, drawings."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import Subset
from typer.testing import CliRunner

from tconv.launch import recorded
from tconv.models import gallery
from tconv.models.data import Images, load
from tconv.models.house import house
from tconv.models.lenet import lenet5

RUNNER = CliRunner()


def command(*arguments: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(gallery.main)
    result = RUNNER.invoke(app, arguments)
    return result.exit_code, result.output


@pytest.mark.interpreter
def test_the_lectures_filters_run_on_our_kernel() -> None:
    picture = torch.rand(3, 9, 8)
    with recorded() as log:
        results = gallery.filtered(picture)
    assert any("fprop" in launch.kernel or "direct" in launch.kernel for launch in log)
    assert results.shape == (7, 3, 9, 8)
    for result, (rows, divisor) in zip(results, gallery.FILTERS.values(), strict=True):
        by_hand = torch.zeros(3, 9, 8)
        framed = torch.nn.functional.pad(picture, (1, 1, 1, 1))
        for r in range(3):
            for s in range(3):
                by_hand += rows[r][s] / divisor * framed[:, r : r + 9, s : s + 8]
        torch.testing.assert_close(result, by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0], picture)


def test_the_shipped_picture_is_the_drawn_one() -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(gallery.PICTURE)), house())


GREY = np.linspace(0, 1, 64).reshape(8, 8)
PICTURES: dict[str, Callable[[Path], None]] = {
    "16 bits.png": lambda path: Image.fromarray((GREY * 65535).astype(np.uint16)).save(path),
    "grey.png": lambda path: Image.fromarray((GREY * 255).astype(np.uint8)).save(path),
    "floats.tiff": lambda path: Image.fromarray(GREY.astype(np.float32)).save(path),
    "palette.gif": lambda path: Image.fromarray((GREY * 255).astype(np.uint8)).save(path),
    "bits.png": lambda path: Image.fromarray(GREY > 0.5).save(path),
    "photo.jpg": lambda path: Image.fromarray(house()).save(path),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_is_read(name: str, tmp_path: Path) -> None:
    PICTURES[name](tmp_path / name)
    picture = gallery.read_picture(tmp_path / name)
    assert picture.shape[0] == 3
    assert 0 <= float(picture.min()) < 0.1
    assert 0.9 < float(picture.max()) <= 1


def test_transparency_is_blended_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (gallery.read_picture(tmp_path / "clear.png") == 1).all()


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    Image.new("RGB", (1000, 10)).save(tmp_path / "wide.png")
    assert gallery.read_picture(tmp_path / "wide.png").shape == (3, 5, 512)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_picture_of_one_pixel(ending: str, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    out = tmp_path / f"out.{ending}"
    code, text = command(str(tmp_path / "dot.png"), "--out", str(out), "--width", "5")
    assert (code, text.strip()) == (0, str(out))
    if ending == "svg":
        drawing = ElementTree.parse(out).getroot()
        assert "prefers-color-scheme:dark" in out.read_text()
        assert len(list(drawing.iter("{http://www.w3.org/2000/svg}image"))) == 7
    else:
        assert Image.open(out).width >= 500


BAD: dict[str, tuple[bytes | None, str]] = {
    "missing.png": (None, "there is no such file"),
    "text.png": (b"no picture at all", "is not a picture"),
    "cut.png": (gallery.PICTURE.read_bytes()[:2000], "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_a_picture_is_named(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, text = command(str(tmp_path / name), "--out", str(tmp_path / "out.svg"))
    assert code == 1
    assert name in text
    assert words in text


def test_another_ending_is_refused(tmp_path: Path) -> None:
    code, text = command("--out", str(tmp_path / "out.bmp"))
    assert code == 1
    assert ".svg or a .png" in text


@pytest.mark.interpreter
def test_activations_are_drawn_from_stored_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.save(lenet5().state_dict(), tmp_path / "lenet5.pt")
    arguments = ("--activations", "--weights", str(tmp_path / "lenet5.pt"))
    with recorded() as log:
        code, _ = command(*arguments, "--out", str(tmp_path / "maps.svg"))
    assert (code, log != []) == (0, True)
    svg = (tmp_path / "maps.svg").read_text()
    for words in ("c1: 6x28x28", "s4: 16x5x5", "c5: 120x1x1, the first 16 maps", "filters of the"):
        assert words in svg


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"c1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    code, text = command("--activations", "--weights", str(tmp_path / "other.pt"))
    assert code == 1
    assert "other.pt holds no weights of LeNet-5" in text


def test_a_trained_network_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn (tconv[train])")
    images = load("digits")
    few = Images("digits", Subset(images.train, range(4)), Subset(images.test, range(4)), 10)
    monkeypatch.setattr("tconv.models.data.load", lambda *_: few)
    weights, text = tmp_path / "lenet5.pt", io.StringIO()
    first = gallery.trained_lenet(weights, 1, Console(file=text, width=200))
    assert "epoch 1/1" in text.getvalue()
    assert str(weights) in text.getvalue()
    again = gallery.trained_lenet(weights, 1, Console(file=text))
    assert text.getvalue().count("epoch") == 1
    for key, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    weights.write_bytes(b"no weights")
    with pytest.raises(gallery.PictureError, match=r"lenet5\.pt holds no weights of LeNet-5"):
        gallery.trained_lenet(weights, 1, Console(file=text))


def test_a_picture_becomes_a_digit_bright_on_dark() -> None:
    paper = torch.ones(3, 40, 60)
    paper[:, 10:30, 25:30] = 0.0
    ink = gallery.as_digit(paper)
    torch.testing.assert_close(ink, gallery.as_digit(1 - paper))
    assert ink.shape == (1, 1, 32, 32)
    assert ink[0, 0, 16, 14] > 0 > ink[0, 0, 0, 0]
