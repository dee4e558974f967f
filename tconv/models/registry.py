"""The networks by name, and the volume that each was designed for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import nn

Arguments = ParamSpec("Arguments")
Network = TypeVar("Network", bound=nn.Module)

BUILDERS: dict[str, Callable[..., nn.Module]] = {}
INPUT_VOLUMES: dict[str, tuple[int, int, int]] = {}  # channels, height, width
IMAGENET = (3, 224, 224)


def network(
    volume: tuple[int, int, int],
) -> Callable[[Callable[Arguments, Network]], Callable[Arguments, Network]]:
    """Register a builder under its name; what it builds remembers that name."""

    def register(build: Callable[Arguments, Network]) -> Callable[Arguments, Network]:
        @wraps(build)
        def named(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Network:
            model = build(*args, **kwargs)
            model.network = build.__name__  # type: ignore[assignment]
            return model

        BUILDERS[build.__name__] = named
        INPUT_VOLUMES[build.__name__] = volume
        return named

    return register


def network_name(model: nn.Module) -> str | None:
    """The builder's name; None for a model that none of ours built."""
    name = getattr(model, "network", None)
    return name if isinstance(name, str) and name in BUILDERS else None
