"""The loop that trains a network: on one device or several, in any dtype, resumable."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset

from tconv.graphs import graphed
from tconv.models.data import Images, augmented, prepared

Ticker = Callable[[int, float], None]  # batches done in this epoch, loss of the last
TEST_BATCH = 256

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], float, dict[str, Any]]] = {
    # With the learning rate that each begins with.
    "adam": (torch.optim.Adam, 5e-3, {}),
    "adadelta": (torch.optim.Adadelta, 1.0, {"weight_decay": 1e-3}),
    "sgd": (torch.optim.SGD, 0.05, {"momentum": 0.9, "weight_decay": 5e-4}),
}


@dataclass(frozen=True)
class Settings:
    """Settings of a training run."""

    epochs: int = 3
    batch: int = 64  # images a step, over all devices
    optimizer: str = "adam"
    learning_rate: float | None = None  # None: the optimizer's own
    dtype: torch.dtype = torch.float32  # of activations; weights stay in float32
    channels_last: bool = True
    augment: bool = False
    graphed: bool = False  # whether a step is one CUDA graph
    steps: int | None = None  # at most so many an epoch
    seed: int = 0
    loaders: int = 0  # processes that read images


@dataclass(frozen=True)
class Epoch:
    """Results of one epoch; a row of the log."""

    epoch: int
    loss: float  # mean cross-entropy over the epoch's images, in nats
    test_accuracy: float  # share of test images
    seconds: float  # training alone
    images_per_s: float
    batch_losses: tuple[float, ...] = field(default=(), repr=False)  # of this process


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1
    local: int = 0  # on this machine

    @property
    def first(self) -> bool:
        return self.rank == 0

    def summed(self, *values: float) -> list[float]:
        """``values``, added up over all processes."""
        if self.world == 1:
            return list(values)
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]


@contextlib.contextmanager
def joined(cuda: bool) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, or this one alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    # Its default arguments hold the group that is there when it is first imported, for good; and
    # objects that outlive the group keep its threads, which may abort the process at exit.
    import torch.distributed.nn.functional  # noqa: F401

    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(distributed.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        gc.collect()
        distributed.destroy_process_group()


class Trainer:
    """Trains ``model`` on ``images``; ``state`` and ``restore`` carry it over a break.

    The order of images follows from the seed and the epoch's number, so that a training that was
    resumed sees what it would have seen.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        volume: tuple[int, int, int],
        settings: Settings,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.device, self.ranks = device or torch.device("cpu"), ranks or Ranks()
        self.settings, self.images, self.volume = settings, images, volume
        if settings.batch % self.ranks.world:
            raise ValueError(
                f"a batch of {settings.batch} images cannot be shared by {self.ranks.world} "
                "processes alike"
            )
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        model.to(self.device)
        self.model = model.to(memory_format=layout)  # type: ignore[call-overload]
        self._layout = layout
        self._callable: nn.Module = self.model
        if self.ranks.world > 1:
            places = [self.device.index] if self.device.type == "cuda" else None
            self._callable = DistributedDataParallel(self.model, device_ids=places)
        kind, rate, more = OPTIMIZERS[settings.optimizer]
        if settings.graphed and settings.optimizer != "sgd":
            more = {**more, "capturable": True}
        rate = rate if settings.learning_rate is None else settings.learning_rate
        self.optimizer = kind(self.model.parameters(), lr=rate, **more)  # type: ignore[call-arg]
        half = settings.dtype is torch.float16
        if half and settings.graphed:
            raise ValueError(
                "a graphed step cannot scale its loss as float16 needs: take bfloat16 or float32"
            )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self._graph: Callable[..., Tensor] | None = None
        self.done = 0  # epochs

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs: plain values and tensors."""
        return {
            "epoch": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            ValueError: if it is not a state of this model and optimizer.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["random"])
            self.done = int(state["epoch"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            first = " ".join(str(error).split())[:300]
            raise ValueError(f"no state of this training: {first}") from error

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All training images once, in the epoch's own order, each process its share."""
        settings, ranks = self.settings, self.ranks
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.images.train, ranks.world, ranks.rank, seed=settings.seed
        )
        sampler.set_epoch(epoch)
        share = settings.batch // ranks.world
        loader = DataLoader(
            self.images.train,
            share,
            sampler=sampler,
            num_workers=settings.loaders,
            pin_memory=self.device.type == "cuda",
        )
        chance = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        for number, (x, y) in enumerate(loader):
            if settings.steps is not None and number >= settings.steps:
                return
            x = self._placed(x)
            if settings.augment:
                x = augmented(x, chance).contiguous(memory_format=self._layout)
            yield x, y.to(self.device, non_blocking=True)

    def _placed(self, x: Tensor) -> Tensor:
        x = prepared(x.to(self.device, non_blocking=True), self.volume)
        return x.contiguous(memory_format=self._layout)

    def _autocast(self) -> torch.autocast:
        dtype = self.settings.dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One update of the weights; returns the cross-entropy before it."""
        if self.settings.graphed and len(x) * self.ranks.world == self.settings.batch:
            if self._graph is None:
                dtype = self.settings.dtype
                self._graph = graphed(
                    self._callable,
                    x,
                    target=y,
                    loss=functional.cross_entropy,
                    optimizer=self.optimizer,
                    autocast=None if dtype is torch.float32 else dtype,
                )
            return self._graph(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = functional.cross_entropy(self._callable(x), y)
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return loss.detach()

    def epochs(self, tick: Ticker = lambda done, loss: None) -> Iterator[Epoch]:
        """Train on, a result an epoch, to the last that the settings ask for."""
        while self.done < self.settings.epochs:
            self.model.train()
            start, losses, weighted, count = time.perf_counter(), [], 0.0, 0
            for x, y in self.batches(self.done):
                losses.append(float(self.step(x, y)))
                weighted += losses[-1] * len(x)
                count += len(x)
                tick(len(losses), losses[-1])
            seconds = time.perf_counter() - start
            self.done += 1
            share = self.accuracy()
            weighted, all_images = self.ranks.summed(weighted, count)
            rate = all_images / seconds
            yield Epoch(self.done, weighted / all_images, share, seconds, rate, tuple(losses))

    def accuracy(self) -> float:
        """Share of the test images whose highest score is their label."""
        places = range(self.ranks.rank, self.images.counts[1], self.ranks.world)
        part = Subset(self.images.test, list(places))
        self.model.eval()
        right = 0
        with torch.no_grad(), self._autocast():
            for x, y in DataLoader(part, TEST_BATCH, num_workers=self.settings.loaders):
                right += int((self.model(self._placed(x)).argmax(1).cpu() == y).sum())
        right_of_all, count = self.ranks.summed(right, len(part))
        return right_of_all / count
