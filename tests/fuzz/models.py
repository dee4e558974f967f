"""Random edits of a converted or compiled model, held against the same edits in torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor, nn

import tconv
from tconv.compiler import tconv_backend
from tests.devices import DEVICE
from tests.tconv.compiler.test_edits import EDITS, small

BY_NAME = {edit.__name__: edit for edit in EDITS}


@dataclass(frozen=True)
class Edited:
    """A model, how it came to our kernels, and what is then done to it, in order."""

    compiled: bool  # by ``torch.compile``, else by ``tconv.convert``
    edits: tuple[str, ...]
    gradient: bool

    @property
    def name(self) -> str:
        return "compiled and edited" if self.compiled else "converted and edited"


def models() -> st.SearchStrategy[Edited]:
    edits = st.lists(st.sampled_from(sorted(BY_NAME)), min_size=1, max_size=4)
    rarely = st.sampled_from([False, False, False, True])  # compiling takes a second
    return st.builds(Edited, rarely, edits.map(tuple), st.booleans())


def _outcome(model: nn.Module, call: Any, gradient: bool) -> list[Tensor]:
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator).to(parameter)
    with torch.set_grad_enabled(gradient):
        y = call(x)
    if not gradient:
        return [y]
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)]


def check(case: Edited) -> bool:
    """Whether torch can do all edits; ours must follow each that it can.

    Raises:
        AssertionError: where ours gives another result, or refuses.
    """
    torch._dynamo.reset()
    theirs = small().to(DEVICE)
    ours = copy.deepcopy(theirs)
    call: Any = ours
    if case.compiled:
        call = torch.compile(ours, backend=tconv_backend, options={"rest": "eager"})
    else:
        tconv.convert(ours)
    _outcome(ours, call, case.gradient)
    for name in case.edits:
        try:
            BY_NAME[name](theirs)
            wanted = _outcome(theirs, theirs, case.gradient)
        except Exception:
            return False
        BY_NAME[name](ours)
        found = _outcome(ours, call, case.gradient)
        bound = 1e-8 if found[0].dtype == torch.float64 else 1e-3
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound, msg=lambda text: (
            f"after {name}: {text}"  # noqa: B023
        ))  # fmt: skip
    return True
