"""Launches of the compiled test kernels on the emulated GPU; each returns its numeric error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator import Counters, Machine, Memory, Program, TensorMap

Array = NDArray[Any]


class Launched:
    """One launch of a kernel: its memory, result and counts."""

    def __init__(self, entry: dict[str, Any], ptx: str | None = None, copies: str = "late") -> None:
        self.entry, self.copies = entry, copies
        self.program = Program.parse(ptx or entry["ptx"])
        self.memory = Memory()
        self.random = np.random.default_rng(0)
        self.counters = Counters()

    def normal(self, *shape: int, dtype: Any = np.float16) -> Array:
        return self.random.standard_normal(shape).astype(dtype)

    def run(self, arguments: list[Any], grid: tuple[int, ...]) -> None:
        scratch = [0] * (len(self.program.parameters) - len(arguments))
        machine = Machine(
            self.program, self.memory, arguments + scratch, grid,
            shared_bytes=self.entry["shared"], copies=self.copies,  # type: ignore[arg-type]
        )  # fmt: skip
        self.counters = machine.run()

    def map(self, place: int, address: int, array: Array) -> list[Any]:
        """Return a tensor map's arguments: the map, then its shape and strides."""
        meta = self.entry["maps"][place]
        shape = list(array.shape)
        strides = [stride // array.itemsize for stride in array.strides]
        made = TensorMap(address, shape, strides, meta["box"], meta["itemsize"], meta["swizzle"])
        return [made, *shape, *strides]


def relative(got: Array, wanted: Array) -> float:
    """Return the error's norm relative to the wanted result's norm; infinite for NaN."""
    error = np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted)
    return float(error) if np.isfinite(error) else float("inf")


def matmul(
    launch: Launched, dtype: Any = np.float16, m: int = 100, n: int = 64, k: int = 160
) -> float:
    a, b = launch.normal(m, k, dtype=dtype), launch.normal(k, n, dtype=dtype)
    out = launch.memory.put(nbytes=4 * m * n, name="c")
    pointers = [launch.memory.put(a, name="a"), launch.memory.put(b, name="b"), out]
    launch.run([*pointers, m, n, k], (-(-m // 64), -(-n // 64)))
    return relative(launch.memory.get(out, np.float32, (m, n)), a.astype(float) @ b.astype(float))


def matmul_boxes(launch: Launched, m: int = 128, n: int = 64, k: int = 320) -> float:
    a, b = launch.normal(m, k), launch.normal(k, n)
    out = launch.memory.put(nbytes=2 * m * n, name="c")
    shape = np.empty((m, n), np.float16)
    arguments = launch.map(0, launch.memory.put(a, name="a"), a)
    arguments += launch.map(1, launch.memory.put(b, name="b"), b) + launch.map(2, out, shape)
    launch.run([*arguments, k], (m // 64, n // 64))
    return relative(launch.memory.get(out, np.float16, (m, n)), a.astype(float) @ b.astype(float))


def softmax(launch: Launched, rows: int = 3, length: int = 500) -> float:
    x = launch.normal(rows, length, dtype=np.float32)
    out = launch.memory.put(nbytes=x.nbytes, name="y")
    launch.run([launch.memory.put(x, name="x"), out, length], (rows,))
    power = np.exp(x - x.max(1, keepdims=True))
    return relative(
        launch.memory.get(out, np.float32, x.shape), power / power.sum(1, keepdims=True)
    )


def layer_norm(launch: Launched, rows: int = 3, length: int = 1000) -> float:
    x = launch.normal(rows, length)
    weight, bias = (launch.normal(length, dtype=np.float32) for _ in range(2))
    out = launch.memory.put(nbytes=x.nbytes, name="y")
    pointers = [launch.memory.put(x), launch.memory.put(weight), launch.memory.put(bias), out]
    launch.run([*pointers, length], (rows,))
    value = x.astype(float)
    centred = value - value.mean(1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weight + bias
    return relative(launch.memory.get(out, np.float16, x.shape), wanted)


def histogram(launch: Launched, length: int = 1000) -> float:
    x = launch.random.integers(0, 16, length).astype(np.int32)
    counts = launch.memory.put(np.zeros(16, np.int32))
    total = launch.memory.put(np.zeros(1, np.float32))
    launch.run([launch.memory.put(x), counts, total, length], (-(-length // 256),))
    got = launch.memory.get(counts, np.int32, (16,))
    assert launch.memory.get(total, np.float32, (1,))[0] == x.sum()
    return relative(got, np.bincount(x, minlength=16))


def column_sums(launch: Launched, rows: int = 60, columns: int = 90) -> float:
    x = launch.normal(rows, columns, dtype=np.float32)
    out = launch.memory.put(nbytes=4 * columns, name="y")
    launch.run([launch.memory.put(x), out, rows, columns], (-(-columns // 32),))
    return relative(launch.memory.get(out, np.float32, (columns,)), x.astype(float).sum(0))


def attention(launch: Launched, length: int = 150, depth: int = 32) -> float:
    q, k, v = (launch.normal(length, depth) for _ in range(3))
    out = launch.memory.put(nbytes=4 * length * depth, name="out")
    scale = depth**-0.5
    pointers = [launch.memory.put(each) for each in (q, k, v)]
    launch.run([*pointers, out, length, scale], (-(-length // 64),))
    score = q.astype(float) @ k.astype(float).T * scale
    power = np.exp(score - score.max(1, keepdims=True))
    wanted = power / power.sum(1, keepdims=True) @ v.astype(float)
    return relative(launch.memory.get(out, np.float32, (length, depth)), wanted)


RUN = {
    "matmul": matmul,
    "matmul_tf32": lambda launch: matmul(launch, np.float32),
    "matmul_boxes": matmul_boxes,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "histogram": histogram,
    "column_sums": column_sums,
    "attention": attention,
}
MOST_ERROR = {
    "matmul": 1e-5, "matmul_tf32": 2e-3, "matmul_boxes": 1e-3, "softmax": 1e-6,
    "layer_norm": 1e-3, "histogram": 0.0, "column_sums": 1e-6, "attention": 2e-3,
}  # fmt: skip
