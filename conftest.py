"""For tests and doctests alike: without a GPU the kernels run in Triton's interpreter; fresh
tensors are poisoned.
"""

from __future__ import annotations

import importlib.util
import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

from collections.abc import Callable
from typing import Any

import pytest

from tconv.ops.launch import interpreting
from tests.interpreter_bfloat16 import mend
from tests.interpreter_memory import watch

if interpreting():
    mend()
    watch()

collect_ignore = [] if importlib.util.find_spec("keras") else ["tconv/keras.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU; skipped, visibly, without one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's tuned tables."""
    monkeypatch.setenv("TCONV_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element that no kernel wrote is seen."""

    def poisoning(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = plain(*args, **kwargs)
            fake = isinstance(tensor, torch._subclasses.FakeTensor)
            if tensor.is_floating_point() and tensor.device.type != "meta" and not fake:
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return empty

    for name in ("empty", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
