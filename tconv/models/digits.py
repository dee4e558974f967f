"""Real handwritten digits, without a download: the 1,797 that scikit-learn ships."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

TEST_COUNT = 360  # a fifth; 1,437 remain to learn from
SIZE = 32  # LeNet-5's input


@dataclass(frozen=True)
class Digits:
    """Images (count, channels, 32, 32) in float32 and labels (count,) in int64."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def load_digits(channels: int = 1, seed: int = 0) -> Digits:
    """The digits, enlarged from 8x8 to 32x32 (bilinear) and standardised.

    Mean and standard deviation are those of the training images, so that the test images
    teach nothing. ``channels`` repeats the grey values; ``seed`` fixes the split.

    Raises:
        ImportError: where scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: "
            "python -m pip install 'tconv[train]'"
        ) from error
    bunch = datasets.load_digits()
    small = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    images = functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[TEST_COUNT:], order[:TEST_COUNT]
    deviation, mean = torch.std_mean(images[train])
    images = ((images - mean) / deviation).repeat(1, channels, 1, 1)
    return Digits(images[train], labels[train], images[test], labels[test])
