"""Options that the commands ``train`` and ``infer`` share: names, devices, backends."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tconv.compiler import tconv_backend
from tconv.extras import extra
from tconv.launch import interpreting, runs_triton
from tconv.models.data import DATASETS, WITHOUT_PATH
from tconv.models.registry import BUILDERS, INPUT_VOLUMES
from tconv.models.trace import torch_twin

with extra("train"):
    import typer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SMALL_SIDE = 32  # of digits, MNIST and CIFAR-10
LEAST_SIDE = {"alexnet": 63, "alexnet_2012": 227}  # of networks that take no 32x32 image


class Backend(str, Enum):
    """The implementation of convolution and max-pool: our modules, our backend, or torch."""

    tconv = "tconv"
    tconv_compiled = "tconv.compile"
    torch = "torch"
    compiled = "torch.compile"


def one_of(kind: str, names: Iterable[str]) -> object:
    """A callback that accepts only ``names`` and lists them in its error."""
    known = list(names)

    def check(name: str) -> str:
        if name not in known:
            raise typer.BadParameter(f"no {kind} {name!r}; there are: {', '.join(known)}")
        return name

    return check


BACKENDS = ", ".join(backend.value for backend in Backend)
check_backend = one_of("backend", [backend.value for backend in Backend])
check_dtype = one_of("dtype", DTYPES)
check_data = one_of("dataset", DATASETS)


def check_network(name: str) -> str:
    import tconv.models  # noqa: F401  # every builder registers

    if name not in BUILDERS:
        raise typer.BadParameter(f"no model {name!r}; there are: {', '.join(BUILDERS)}")
    return name


def build(name: str, backend: Backend, seed: int, num_classes: int = 10) -> nn.Module:
    """The named network; all backends start from the same weights for the same seed."""
    torch.manual_seed(seed)
    model = BUILDERS[name](num_classes=num_classes)
    if backend is Backend.tconv:
        return model
    return with_backend(torch_twin(model), backend)


def with_backend(twin: nn.Module, backend: Backend) -> nn.Module:
    """A network of torch's own modules, compiled in place where the backend compiles."""
    if backend is Backend.compiled:
        compile_in_place(twin, mode="max-autotune-no-cudagraphs")
    elif backend is Backend.tconv_compiled:
        compile_in_place(twin, backend=tconv_backend, options={"rest": "eager"})
    return twin


def compile_in_place(network: nn.Module, **how: Any) -> None:
    """Compile the network's calls by ``torch.compile``; the ``state_dict`` keeps its keys.

    ``Module.compile`` will not do: Dynamo skips the frames of an ``nn.Sequential`` below it.
    """
    network.forward = torch.compile(network.forward, **how)  # type: ignore[method-assign]


def volume_for(network: str, data: str) -> tuple[int, int, int]:
    """The input volume of ``network`` for images of ``data``; small images stay small."""
    volume = INPUT_VOLUMES[network]
    if data in ("folder", "synthetic"):
        return volume
    side = LEAST_SIDE.get(network, SMALL_SIDE)
    return volume[0], side, side


def check_path(data: str, path: Path | None) -> None:
    if path is None and data not in WITHOUT_PATH:
        raise typer.BadParameter(f"--data {data} needs --path, the folder that holds it")


def device_named(name: str, local: int = 0) -> torch.device:
    """The device; ``auto`` takes a GPU where there is one, of several processes each its own."""
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{name!r} cannot be used: {reason}") from error
    return device


def where(backend: Backend, device: torch.device) -> str:
    """A description of the hardware that computes the convolutions."""
    if backend is Backend.torch:
        return f"torch's own operators on {_device_name(device)}"
    if backend is Backend.compiled:
        return f"torch.compile(mode='max-autotune-no-cudagraphs') on {_device_name(device)}"
    if not runs_triton(device):
        return "torch's CPU operators (set TRITON_INTERPRET=1 to run the Triton kernels here)"
    if device.type == "cpu" and interpreting():
        return "the Triton kernels, in Triton's interpreter on the CPU"
    return f"the Triton kernels on {_device_name(device)}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
