"""Fixtures and settings for tests and doctests.

Without a GPU the kernels run in Triton's interpreter, or on the emulated GPU that ``TCONV_EMULATE``
names. Fresh tensors are poisoned.
"""

from __future__ import annotations

import importlib.util
import os

# Before torch is imported, here and in the processes that tests start: tensors are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available() and not os.environ.get("TCONV_EMULATE"):
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tconv import interpreter_bfloat16
from tconv.launch import emulated, interpreting
from tests import interpreter_boxes, interpreter_speed
from tests.interpreter_memory import watch

if interpreting():
    interpreter_bfloat16.mend()
    interpreter_boxes.mend()
    interpreter_speed.hasten()
    watch()

# A plugin that changes where the suite runs when imported, and a program that imports much.
collect_ignore = ["tests/as_on_a_gpu.py", "tests/autotune/killable.py"]
if importlib.util.find_spec("keras") is None:
    collect_ignore.append("tconv/keras.py")


# What a test with each marker needs (pyproject.toml describes them), and whether it is present.
NEEDS = {
    "gpu": ("needs a GPU, CUDA's or an emulated one", torch.cuda.is_available() or emulated()),
    "device": ("needs a CUDA GPU", torch.cuda.is_available()),
    "interpreter": ("needs Triton's interpreter", interpreting()),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (reason, there) in NEEDS.items():
            if marker in item.keywords and not there:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """Disable TF32, which cuDNN uses by default, unless a test asks for it."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(autouse=True)
def _overflow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check the interpreter's 32-bit arithmetic for overflows in the tests marked so."""
    with interpreter_speed.overflow_checked("overflow" in request.keywords):
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from reading or writing the user's tuned tables."""
    monkeypatch.setenv("TCONV_HOME", str(tmp_path_factory.mktemp("home")))


# Torch notes at its first use which functions ``torch.device`` changes as a context: they must be
# its own, else a model made on the meta device takes memory and time.
with torch.device("meta"):
    assert torch.empty(1).is_meta


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN or the least integer, to expose elements that no kernel wrote."""

    def poisoning(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = plain(*args, **kwargs)
            fake = isinstance(tensor, torch._subclasses.FakeTensor)
            if tensor.dtype != torch.bool and tensor.device.type != "meta" and not fake:
                floating = tensor.is_floating_point() or tensor.is_complex()
                with torch.no_grad():
                    tensor.fill_(float("nan") if floating else torch.iinfo(tensor.dtype).min)
            return tensor

        return empty

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_strided"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))
