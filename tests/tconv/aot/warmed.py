"""Warm up a small model, call it, and print what the call compiled.

    TCONV_EMULATE=sm_90 python -m tests.tconv.aot.warmed

prints a JSON object. Then the kernels are carried to another cache, and the model is warmed up
again. It runs in a process of its own, for Triton's interpreter and compiler do not
share one, and with a cache folder of its own (``TRITON_CACHE_DIR``).
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import torch
import triton
from torch import nn

import tconv

HOW: dict[str, Any] = {
    "memory_format": torch.channels_last, "workers": 1, "progress": False,
}  # fmt: skip
SIZE = (1, 16, 8, 8)


def model() -> nn.Module:
    layers = nn.Sequential(tconv.Conv2d(16, 16, 3, padding=1, bias=False), tconv.MaxPool2d(2))
    return layers.half().to(memory_format=torch.channels_last)


def main() -> None:
    torch.manual_seed(0)
    layers, hits = model(), []
    first = tconv.warm_up(layers, [SIZE], **HOW)
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    x = torch.randn(SIZE).half().contiguous(memory_format=torch.channels_last).requires_grad_()
    layers(x).sum().backward()
    found: dict[str, Any] = {"first": first.as_json(), "hits": list(hits)}
    found["gradients"] = all(bool(p.grad.isfinite().all()) for p in layers.parameters())
    with tempfile.TemporaryDirectory() as place:
        saved = tconv.save_kernels(first, f"{place}/kernels")
        os.environ["TRITON_CACHE_DIR"] = f"{place}/another"
        loaded = tconv.load_kernels(f"{place}/kernels")
        again = tconv.warm_up(layers, [SIZE], **HOW)
    found |= {"saved": saved, "loaded": loaded.as_json(), "again": again.as_json()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
