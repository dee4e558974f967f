"""What fuzzing found, each under the name of what was wrong; ``test_found`` runs them all."""

from __future__ import annotations

from tests.fuzz.operators import Call

CALLS: dict[str, Call] = {
    # Padding alone made a result of an image of no height; torch refuses such an image.
    "an image of no height is refused, padded or not": Call(
        operator="conv2d", batch=1, channels=1, filters=1, groups=1, size=(0, 1), window=(1, 1),
        stride=(1, 1), padding=(1, 0), dilation=(1, 1), dtype="float16",
        views=("contiguous", "contiguous"), special="none", bias=False, ceil_mode=False,
        frozen=False, seed=0,
    ),
    # A stride was reduced to the number of windows, 0 here, and a size was then divided by it.
    "an empty batch may have no height, transposed": Call(
        operator="conv_transpose2d", batch=0, channels=1, filters=1, groups=1, size=(0, 1),
        window=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1), dtype="float16",
        views=("contiguous", "contiguous"), special="none", bias=False, ceil_mode=False,
        frozen=False, seed=0,
    ),
    "an empty batch may have a result of no height": Call(
        operator="conv_transpose2d", batch=0, channels=1, filters=1, groups=1, size=(0, 1),
        window=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), dtype="float16",
        views=("contiguous", "contiguous"), special="none", bias=False, ceil_mode=False,
        frozen=False, seed=0,
    ),
}  # fmt: skip
