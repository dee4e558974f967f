"""Checkpoints of a training: weights, the optimizer's state and the epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT = 1
PARTS = ("format", "network", "classes", "epoch", "model")  # what every checkpoint holds


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the cause."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` in one step: a killed process leaves the previous checkpoint.

    Raises:
        CheckpointError: where the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({"format": FORMAT, **content}, draft)
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content; reading is parsing only, no code in it runs.

    A bare ``state_dict`` is taken for the weights of a network that the caller knows.

    Raises:
        CheckpointError: for a file that is missing, damaged or of a newer format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except Exception as error:  # torch words a damaged file in many ways
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return {"model": content}
    missing = [part for part in PARTS if part not in content]
    if missing:
        raise CheckpointError(f"{path} is not a checkpoint of tconv: it lacks {', '.join(missing)}")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']!r}, this tconv reads {FORMAT}")
    return content


def load_weights(model: nn.Module, content: dict[str, Any], path: Path) -> None:
    """Give ``model`` the weights of a checkpoint.

    Raises:
        CheckpointError: where they are another network's.
    """
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:300]
        named = f" of {content['network']!r}" if "network" in content else ""
        raise CheckpointError(f"{path}: its weights{named} do not fit: {first}") from error
