"""The backend under its name, as the installed package's entry point gives it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.backends.registry import list_backends, register_backend

from tconv.compiler import tconv_backend


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    """A checkout that is not installed has no entry points."""
    if "tconv" not in list_backends(exclude_tags=None):
        register_backend(tconv_backend, name="tconv")


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    """No test meets another's compiled code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
