"""Tests of geometry against the lecture's and torch's arithmetic."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tconv.geometry import ConvGeometry, PoolGeometry, pool_out_size
from tconv.problem import Problem


@pytest.mark.parametrize(
    ("volume", "filters", "extent", "stride", "padding", "output"),
    [
        ("3x32x32", 1, 5, 1, 0, "1x28x28"),
        ("3x32x32", 6, 5, 1, 0, "6x28x28"),
        ("6x28x28", 10, 5, 1, 0, "10x24x24"),
        ("1x7x7", 1, 3, 1, 0, "1x5x5"),
        ("1x7x7", 1, 3, 2, 0, "1x3x3"),
        ("1x7x7", 1, 3, 1, 1, "1x7x7"),
        ("3x32x32", 10, 5, 1, 2, "10x32x32"),
    ],
)
def test_the_lectures_examples(
    volume: str, filters: int, extent: int, stride: int, padding: int, output: str
) -> None:
    layer = ConvGeometry.from_lecture(volume, filters, extent, stride, padding)
    assert layer.output_volume == output


def test_counts() -> None:
    layer = ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2)
    assert (layer.parameters(), layer.parameters(bias=False)) == (760, 750)
    assert layer.flops == 2 * (10 * 32 * 32) * (5 * 5 * 3)
    assert layer.least_bytes(2) == 2 * (3 * 32 * 32 + 750 + 10 * 32 * 32)


WINDOWS = [
    (size, extent, stride, pad, dilation)
    for size, extent, stride, pad, dilation in itertools.product(
        (1, 2, 7, 16), (1, 2, 3, 5), (1, 2, 3, 7), (0, 1, 4), (1, 2)
    )
    if dilation * (extent - 1) + 1 <= size + 2 * pad
]


@pytest.mark.parametrize(("size", "extent", "stride", "pad", "dilation"), WINDOWS)
def test_what_windows_read_is_counted(
    size: int, extent: int, stride: int, pad: int, dilation: int
) -> None:
    span = dilation * (extent - 1) + 1
    layer = ConvGeometry(1, 1, size, size, 1, extent, extent, stride, stride, pad, pad,
                         dilation, dilation)  # fmt: skip
    read = {w * stride + t * dilation - pad for w in range(layer.out_h) for t in range(extent)}
    exact = len(read & set(range(size))) ** 2
    if dilation == 1 or stride >= span:
        assert layer.x_read == exact
    else:  # gaps near the borders are estimated
        assert 0 <= layer.x_read <= layer.x_elements
        assert abs(layer.x_read**0.5 - exact**0.5) <= 2


def test_least_bytes_counts_what_the_pass_moves() -> None:
    """A 1x1 filter at stride 2 reads a quarter of the pixels; its dgrad writes them all."""
    layer = ConvGeometry(2, 8, 16, 16, 4, 1, 1, 2, 2)
    others = 4 * 8 + 2 * 4 * 8 * 8
    assert Problem(layer, "fprop").least_bytes == 2 * (2 * 8 * 8 * 8 + others)
    assert Problem(layer, "wgrad").least_bytes == 2 * (2 * 8 * 8 * 8 + others)
    assert Problem(layer, "dgrad").least_bytes == 2 * (2 * 8 * 16 * 16 + others)


def test_borders_that_do_not_fit_are_dropped() -> None:
    assert ConvGeometry.from_lecture("1x7x7", filters=1, extent=3, stride=3).dropped == (1, 1)
    assert ConvGeometry.from_lecture("1x7x7", filters=1, extent=3, stride=2).dropped == (0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 0}, "stride_h is 0"),
        ({"padding": -1}, "pad_h is -1"),
        ({"extent": 9}, "9x9 is larger than the padded input 7x7"),
        ({"volume": "7x7"}, "reads CxHxW"),
        ({"volume": "0x7x7"}, "reads CxHxW"),
        ({"groups": 2}, "in_channels is 1, which groups=2 does not divide"),
    ],
)
def test_errors_name_the_value(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"volume": "1x7x7", "filters": 1, "extent": 3}
    with pytest.raises(ValueError, match=words):
        ConvGeometry.from_lecture(**(arguments | change))  # type: ignore[arg-type]


small = st.integers(1, 5)


@given(
    *[st.integers(1, 12)] * 2, *[small] * 2, *[small] * 2, *[st.integers(0, 3)] * 2, *[small] * 2
)
@settings(max_examples=150, deadline=None)
def test_output_size_is_torchs(
    in_h: int, in_w: int, filter_h: int, filter_w: int, stride_h: int, stride_w: int,
    pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
) -> None:  # fmt: skip
    window = ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))
    shape = ConvGeometry.from_torch((1, 1, in_h, in_w), (1, 1, filter_h, filter_w), *window)
    try:
        shape.validate()
    except ValueError:
        return
    x = torch.zeros(1, 1, in_h, in_w, device="meta")
    w = torch.zeros(1, 1, filter_h, filter_w, device="meta")
    y = torch.nn.functional.conv2d(x, w, None, *window)
    assert (shape.out_h, shape.out_w) == tuple(y.shape[2:])


@given(st.integers(1, 20), st.integers(1, 6), small, st.integers(0, 3), small, st.booleans())
@settings(max_examples=150, deadline=None)
def test_pool_size_is_torchs(
    size: int, window: int, stride: int, pad: int, dilation: int, ceil_mode: bool
) -> None:
    if pad > window // 2 or size + 2 * pad < dilation * (window - 1) + 1:
        return
    x = torch.zeros(1, 1, size, size, device="meta")
    y = torch.nn.functional.max_pool2d(x, window, stride, pad, dilation, ceil_mode)
    assert pool_out_size(size, window, stride, pad, dilation, ceil_mode) == y.shape[2]
    shape = PoolGeometry(1, 1, size, size, window, window, stride, stride, pad, pad,
                         dilation, dilation, ceil_mode)  # fmt: skip
    assert (shape.out_h, shape.out_w) == tuple(y.shape[2:])


@given(st.tuples(*[st.integers(1, 99)] * 14))
def test_keys_are_parsed_back(numbers: tuple[int, ...]) -> None:
    batch, channels, rest_h, rest_w, filters, filter_h, filter_w, *window, groups = numbers
    dilation_h, dilation_w = window[4:]
    in_h, in_w = rest_h + dilation_h * (filter_h - 1), rest_w + dilation_w * (filter_w - 1)
    volume = (batch, channels * groups, in_h, in_w)
    shape = ConvGeometry(*volume, filters * groups, filter_h, filter_w, *window, groups)
    for problem in (Problem(shape, "fprop"), Problem(shape, "wgrad", "float32", "nchw", "tf32")):
        assert Problem.from_key(problem.key) == problem


@pytest.mark.parametrize("key", ["", "fprop", "fprop/int8/nhwc/n1", "up/float16/nhwc/n1c1"])
def test_text_that_is_not_a_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="names no problem"):
        Problem.from_key(key)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("n1c2h3w3-k2f1x1-s0x1-p0x0-d1x1-g1", "stride_h is 0"),
        ("n1c2h3w3-k2f1x1-s1x1-p0x0-d1x1-g0", "groups is 0"),
        ("n1c2h3w3-k2f5x5-s1x1-p0x0-d1x1-g1", "larger than the padded input"),
        ("n9999999999999c2h3w3-k2f1x1-s1x1-p0x0-d1x1-g1", "names no convolution"),
    ],
)
def test_a_key_of_a_layer_that_cannot_exist_is_refused(layer: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Problem.from_key(f"fprop/float16/nhwc/{layer}")
