"""Tests of the Keras layers against Keras's own: outputs, gradients, files, training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

keras = pytest.importorskip("keras", reason="Keras is not installed: the extra tconv[keras]")

import tconv.keras as ours  # noqa: E402
from tconv.launch import recorded  # noqa: E402

ROOT = Path(__file__).parents[2]
FORMATS = ("channels_last", "channels_first")
ONE_TO_THREE = st.integers(1, 3)


def volume(channels: int, height: int, width: int, data_format: str, seed: int = 0) -> torch.Tensor:
    size = (
        (2, height, width, channels) if data_format == FORMATS[0] else (2, channels, height, width)
    )
    generator = torch.Generator().manual_seed(seed)
    device = keras.src.backend.torch.core.get_device()
    return torch.randn(size, generator=generator).to(device).requires_grad_()


def agree(theirs: Any, mine: Any, x: torch.Tensor, kernel: str) -> None:
    """Check equal outputs and gradients, and that our kernel was launched."""
    expected = theirs(x)
    with recorded() as log:
        result = mine(x)
        mine.build(tuple(x.shape)) if not mine.built else None
    if mine.weights:
        mine.set_weights(theirs.get_weights())
        result = mine(x)
    assert any(kernel in launch.kernel for launch in log)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(expected)
    for layer, y in ((theirs, expected), (mine, result)):
        variables = [variable.value for variable in layer.trainable_weights]
        layer.gradients = torch.autograd.grad(y, [x, *variables], dy)
    for one, other in zip(theirs.gradients, mine.gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@settings(max_examples=12, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.sampled_from(["valid", "same"]),
    st.sampled_from(FORMATS),
    st.tuples(ONE_TO_THREE, ONE_TO_THREE),
    ONE_TO_THREE,
    ONE_TO_THREE,
    ONE_TO_THREE,
    st.tuples(st.integers(7, 10), st.integers(7, 10)),
    st.booleans(),
)
def test_conv2d_equals_keras(
    padding: str, data_format: str, extent: tuple[int, int], stride: int, dilation: int,
    groups: int, size: tuple[int, int], use_bias: bool,
) -> None:  # fmt: skip
    dilation = 1 if stride > 1 else dilation  # Keras refuses both
    arguments = {"kernel_size": extent, "strides": stride, "padding": padding, "groups": groups}
    arguments |= {"data_format": data_format, "dilation_rate": dilation, "use_bias": use_bias}
    x = volume(2 * groups, *size, data_format)
    theirs, mine = (kind(3 * groups, **arguments) for kind in (keras.layers.Conv2D, ours.Conv2D))
    agree(theirs, mine, x, "fprop")


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("window", "stride"), [(2, None), (3, 2), ((2, 3), (1, 2)), (3, 1)])
def test_max_pooling_equals_keras(window: Any, stride: Any, padding: str, data_format: str) -> None:
    arguments = {"strides": stride, "padding": padding, "data_format": data_format}
    layers = keras.layers.MaxPooling2D(window, **arguments), ours.MaxPooling2D(window, **arguments)
    agree(*layers, volume(3, 8, 7, data_format), "max_pool")


# Layers by name: the arguments, and our kernel that must run.
LAYERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "transposed": ("Conv2DTranspose", {"filters": 3, "kernel_size": 3, "strides": 2}, "dgrad"),
    "transposed-same": (
        "Conv2DTranspose",
        {"filters": 3, "kernel_size": (3, 4), "strides": 2, "padding": "same"}, "dgrad",
    ),
    "transposed-output-padding": (
        "Conv2DTranspose",
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1},
        "dgrad",
    ),
    "transposed-dilated": (
        "Conv2DTranspose", {"filters": 2, "kernel_size": 2, "dilation_rate": 3}, "dgrad",
    ),
    "depthwise": (
        "DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2, "padding": "same"}, "fprop",
    ),
    "depthwise-strided": ("DepthwiseConv2D", {"kernel_size": 2, "strides": 2}, "fprop"),
    "separable": (
        "SeparableConv2D", {"filters": 5, "kernel_size": 3, "padding": "same", "strides": 2,
                            "activation": "relu"}, "fprop",
    ),
}  # fmt: skip


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_keras(name: str, data_format: str) -> None:
    kind, arguments, kernel = LAYERS[name]
    layers = (getattr(source, kind)(**arguments, data_format=data_format)
              for source in (keras.layers, ours))  # fmt: skip
    agree(*layers, volume(3, 6, 5, data_format), kernel)


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize("window", [{"strides": 2}, {"dilation_rate": 3, "groups": 2}],
                         ids=["strided", "dilated"])  # fmt: skip
def test_conv1d_equals_keras(window: dict[str, int], padding: str) -> None:
    x = volume(4, 11, 1, FORMATS[0])[:, :, 0].detach().requires_grad_()
    layers = (source(6, 4, padding=padding, **window) for source in (keras.layers.Conv1D,
                                                                      ours.Conv1D))  # fmt: skip
    agree(*layers, x, "fprop")


def network() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            ours.Conv2D(4, 3, padding="same", activation="relu"),
            ours.MaxPooling2D(2),
            ours.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_max_pooling_of_integers_equals_keras(dtype: str, padding: str) -> None:
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(
        limits.min, limits.max, (1, 7, 7, 2), dtype, endpoint=True
    )
    with recorded() as launches:
        pooled = ours.MaxPooling2D(2, padding=padding)(x)
    assert launches
    expected = keras.layers.MaxPooling2D(2, padding=padding)(x)
    assert pooled.dtype == expected.dtype
    assert torch.equal(pooled.cpu(), expected.cpu())


def test_a_model_trains_saves_and_loads(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = network()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.arange(64) % 2
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    images[:, 2:6, 2:6] += labels[:, None, None, None]  # a bright square if the label is 1
    with recorded() as log:
        losses = model.fit(images, labels, batch_size=32, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    ran = {launch.kernel.split(".")[-1] for launch in log}
    assert {"implicit_gemm_fprop", "implicit_gemm_dgrad", "implicit_gemm_wgrad"} <= ran
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def imported(prelude: str, **environment: str) -> str:
    """Return the last line of a failing import's traceback."""
    done = subprocess.run(
        [sys.executable, "-c", f"{prelude}\nimport tconv.keras"], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_without_keras_the_error_names_what_to_install() -> None:
    absent = "import sys, importlib.util as u\nsys.modules['keras'] = None\n"
    absent += "u.find_spec = lambda name: None"
    assert "python -m pip install 'tconv[keras]'" in imported(absent)


def test_on_another_backend_the_error_names_what_to_set() -> None:
    # Keras's own backend for inference needs no other package.
    assert "KERAS_BACKEND=torch" in imported("", KERAS_BACKEND="numpy")
    assert "KERAS_BACKEND=torch" in imported("", KERAS_BACKEND="tensorflow")
