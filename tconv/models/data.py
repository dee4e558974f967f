"""Images to learn from: real digits without a download, MNIST, CIFAR-10, folders, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from tconv.extras import extra

DATASETS = ("digits", "mnist", "cifar10", "folder", "synthetic")
WITHOUT_PATH = ("digits", "synthetic")
TEST_DIGITS = 360  # a fifth; 1,437 remain to learn from
SMALL = 32  # pixels a side: LeNet-5's input, and CIFAR's
CROP_MARGIN = 8 / 7  # a photograph's short side, over the crop that the network sees
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGEST_SHIFT = 2  # pixels, of an augmented image, as in the ConvNetJS demo
SYNTHETIC_CLASSES = 1000

Pairs: TypeAlias = "Dataset[Any]"  # of an image and its label


class DataError(ValueError):
    """Images that cannot be used; the message names the path and the cause."""

    def __init__(self, message: str) -> None:
        # A worker process passes its traceback on, which contains this error's name.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class Images:
    """Training and test images: pairs of a (channels, height, width) tensor and a label.

    Values are float32, standardised by the training images' mean and deviation.
    """

    name: str
    train: Pairs
    test: Pairs
    classes: int

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.train), len(self.test)  # type: ignore[arg-type]


def load(
    name: str,
    path: Path | None = None,
    seed: int = 0,
    volume: tuple[int, int, int] = (3, 224, 224),
    count: int = 1024,
) -> Images:
    """The images called ``name``.

    Args:
        name: one of ``DATASETS``.
        path: the folder that holds MNIST or CIFAR-10 as torchvision keeps them, or an image folder
            with ``train`` and ``val``, a folder for each class in each.
        seed: of the digits' split, and of the noise.
        volume: channels, height and width of ``folder`` and ``synthetic`` images.
        count: of synthetic images.

    Raises:
        DataError: for an unknown name, a path that is missing or holds no such images, damaged
            files, or where the library that reads them is not installed.
    """
    if name not in DATASETS:
        raise DataError(f"no dataset {name!r}; there are: {', '.join(DATASETS)}")
    if name == "digits":
        return _digits(seed)
    if name == "synthetic":
        return _synthetic(volume, count, seed)
    if path is None:
        raise DataError(f"{name} needs the path of its folder")
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder")
    return {"mnist": _mnist, "cifar10": _cifar10, "folder": _folder}[name](path, volume)


def prepared(x: Tensor, volume: tuple[int, int, int]) -> Tensor:
    """A batch converted to a network's input: grey repeated or colours averaged, sides stretched.

    >>> prepared(torch.zeros(2, 1, 8, 8), (3, 32, 32)).shape
    torch.Size([2, 3, 32, 32])
    """
    channels, *sides = volume
    if x.shape[1] != channels:
        x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if list(x.shape[2:]) != sides:
        x = functional.interpolate(x, size=sides, mode="bilinear", align_corners=False)
    return x


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of a batch mirrored or not, and shifted by up to 2 pixels each way.

    What a shift uncovers is 0, the mean of standardised images.
    """
    count, channels, height, width = x.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)
    frame = functional.pad(x, [LARGEST_SHIFT] * 4)
    down, right = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, count, 1), generator=generator)
    rows = (down + torch.arange(height)).to(x.device)[:, None, :, None]
    columns = (right + torch.arange(width)).to(x.device)[:, None, None, :]
    images = torch.arange(count, device=x.device)[:, None, None, None]
    return frame[images, torch.arange(channels, device=x.device)[:, None, None], rows, columns]


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean 0 and deviation 1 by ``train``, so that ``test`` teaches nothing."""
    deviation, mean = torch.std_mean(train, dim=(0, 2, 3), keepdim=True)
    return (train - mean) / deviation, (test - mean) / deviation


def _digits(seed: int) -> Images:
    """The 1,797 digits that scikit-learn ships, enlarged from 8x8 to 32x32 (bilinear)."""
    try:
        with extra("train"):
            from sklearn import datasets
    except ImportError as error:
        raise DataError(f"the digits come with scikit-learn. {error}") from error
    bunch = datasets.load_digits()
    small = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    x = functional.interpolate(small, size=(SMALL, SMALL), mode="bilinear", align_corners=False)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[TEST_DIGITS:], order[:TEST_DIGITS]
    train_x, test_x = _standardised(x[train], x[test])
    pairs = TensorDataset(train_x, labels[train]), TensorDataset(test_x, labels[test])
    return Images("digits", *pairs, classes=10)


def _synthetic(volume: tuple[int, int, int], count: int, seed: int) -> Images:
    """Noise with random labels, to time a network on."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *volume, generator=generator)
    y = torch.randint(0, SYNTHETIC_CLASSES, (count,), generator=generator)
    pairs = TensorDataset(x, y)
    return Images("synthetic", pairs, pairs, SYNTHETIC_CLASSES)


def _torchvision() -> Any:
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch
        raise DataError(
            f"torchvision reads these images and cannot be imported ({error}): install the "
            "torchvision that belongs to your torch"
        ) from error
    return torchvision


def _opened(path: Path, kind: Callable[..., Any], **how: Any) -> Any:
    """torchvision's dataset; its errors about missing or damaged files are raised with the path."""
    try:
        return kind(str(path), **how)
    except Exception as error:
        raise DataError(f"{path} cannot be used: {type(error).__name__}: {error}") from error


def _in_memory(name: str, path: Path, kind: str) -> Images:
    """A dataset whose images are bytes in memory, grey or with the colours last."""
    vision = _torchvision()
    parts = []
    for train in (True, False):
        read = _opened(path, getattr(vision.datasets, kind), train=train)
        x, y = torch.as_tensor(read.data), torch.as_tensor(read.targets, dtype=torch.int64)
        if x.dtype != torch.uint8 or x.ndim not in (3, 4) or len(x) != len(y) or not len(x):
            raise DataError(f"{path} cannot be used: images {tuple(x.shape)}, {len(y)} labels")
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        parts.append((x.float() / 255, y))
    (train_x, train_y), (test_x, test_y) = parts
    train_x, test_x = _standardised(train_x, test_x)
    pairs = TensorDataset(train_x, train_y), TensorDataset(test_x, test_y)
    return Images(name, *pairs, classes=10)


def _mnist(path: Path, volume: tuple[int, int, int]) -> Images:
    return _in_memory("mnist", path, "MNIST")


def _cifar10(path: Path, volume: tuple[int, int, int]) -> Images:
    return _in_memory("cifar10", path, "CIFAR10")


def _folder(path: Path, volume: tuple[int, int, int]) -> Images:
    """Photographs in ``train`` and ``val``, read on access."""
    vision = _torchvision()
    _, height, width = volume
    steps = vision.transforms
    seen = steps.Compose([
        steps.Resize(round(max(height, width) * CROP_MARGIN)),
        steps.CenterCrop((height, width)),
        steps.ToTensor(),
        steps.Normalize(IMAGENET_MEAN, IMAGENET_DEVIATION),
    ])  # fmt: skip
    parts = {}
    for part in ("train", "val"):
        if not (path / part).is_dir():
            raise DataError(f"{path}: there is no folder {part!r} in it")
        kind = vision.datasets.ImageFolder
        parts[part] = _opened(path / part, kind, transform=seen, loader=read_photograph)
    train, test = parts["train"], parts["val"]
    if train.classes != test.classes:
        other = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{path}: classes {other} are not in both 'train' and 'val'")
    return Images("folder", train, test, classes=len(train.classes))


def read_photograph(path: str) -> Any:
    """A picture in three colours.

    Raises:
        DataError: for a file that is cut short or no picture.
    """
    with extra("train"):
        from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
