"""Tests of the datasets: splits, standardisation, and errors for damaged files.

torchvision is replaced by a stand-in, so only this project's handling is tested.
"""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tconv.models.data import DataError, augmented, load, prepared, read_photograph

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (tconv[train])")


def stacked(pairs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = zip(*[pairs[place] for place in range(len(pairs))], strict=True)
    return torch.stack(xs), torch.stack(ys)


def test_digits_are_split_and_standardised() -> None:
    images = load("digits")
    assert images.counts == (1437, 360)
    x, y = stacked(images.train)
    assert x.shape == (1437, 1, 32, 32)
    assert y.unique().tolist() == list(range(10))
    assert abs(x.mean().item()) < 1e-5
    assert abs(x.std().item() - 1) < 1e-5


def test_split_follows_from_the_seed() -> None:
    first, again, other = (stacked(load("digits", seed=seed).test)[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r"pip install 'tconv\[train\]'"):
        load("digits")


def test_synthetic_images_have_the_networks_volume() -> None:
    images = load("synthetic", volume=(3, 8, 9), count=5)
    assert images.counts == (5, 5)
    assert images.train[0][0].shape == (3, 8, 9)
    assert torch.equal(images.train[4][0], load("synthetic", volume=(3, 8, 9), count=5).train[4][0])


def test_prepared_repeats_averages_and_resizes() -> None:
    grey = torch.rand(2, 1, 8, 8)
    colours = prepared(grey, (3, 8, 8))
    assert torch.equal(colours[:, 2], grey[:, 0])
    torch.testing.assert_close(prepared(colours, (1, 8, 8)), grey)
    assert prepared(grey, (3, 20, 24)).shape == (2, 3, 20, 24)


def test_augmented_images_are_mirrored_and_shifted_copies() -> None:
    x = torch.randn(64, 2, 9, 11)
    result = augmented(x, torch.Generator().manual_seed(0))
    seen = set()
    for image, made in zip(x, result, strict=True):
        frame = torch.nn.functional.pad(torch.stack([image, image.flip(-1)]), [2] * 4)
        found = [
            (mirrored, down, right)
            for mirrored in (0, 1) for down in range(5) for right in range(5)
            if torch.equal(frame[mirrored, :, down : down + 9, right : right + 11], made)
        ]  # fmt: skip
        assert found
        seen.add(found[0])
    assert len(seen) > 25  # of 50


def vision(monkeypatch: pytest.MonkeyPatch, **datasets: Any) -> None:
    stand_in = SimpleNamespace(datasets=SimpleNamespace(**datasets))
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)


def test_mnist_and_cifar10_become_standardised_pairs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    calls = []

    def grey(root: str, train: bool) -> SimpleNamespace:
        calls.append((root, train))
        pixels = generator.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        return SimpleNamespace(data=torch.from_numpy(pixels), targets=torch.arange(6))

    def colours(root: str, train: bool) -> SimpleNamespace:
        pixels = generator.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=pixels, targets=list(range(6)))

    vision(monkeypatch, MNIST=grey, CIFAR10=colours)
    x, y = stacked(load("mnist", tmp_path).train)
    assert calls == [(str(tmp_path), True), (str(tmp_path), False)]
    assert (x.shape, y.tolist()) == ((6, 1, 28, 28), list(range(6)))
    x, _ = stacked(load("cifar10", tmp_path).train)
    assert x.shape == (6, 3, 32, 32)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3))


def test_damaged_datasets_are_refused_by_their_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def corrupt(root: str, train: bool) -> SimpleNamespace:
        raise RuntimeError("Dataset not found or corrupted.")

    def odd(root: str, train: bool) -> SimpleNamespace:
        return SimpleNamespace(data=torch.zeros(4, 28, 28, dtype=torch.uint8), targets=[1, 2])

    vision(monkeypatch, MNIST=odd, CIFAR10=corrupt)
    with pytest.raises(DataError, match=rf"{tmp_path}.*corrupted"):
        load("cifar10", tmp_path)
    with pytest.raises(DataError, match=r"\(4, 28, 28\), 2 labels"):
        load("mnist", tmp_path)


def test_missing_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision(monkeypatch)
    with pytest.raises(DataError, match="no such folder"):
        load("mnist", tmp_path / "none")
    with pytest.raises(DataError, match="needs the path"):
        load("folder")
    with pytest.raises(DataError, match="there are: digits, mnist"):
        load("faces")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match="torchvision"):
        load("mnist", tmp_path)


def test_a_truncated_photograph_is_named(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(whole)
    assert read_photograph(str(whole)).mode == "RGB"
    cut.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(DataError, match=str(cut)):
        read_photograph(str(cut))
