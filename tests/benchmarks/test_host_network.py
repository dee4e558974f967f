"""The benchmark of a network's host cost runs, and both of our ways launch kernels."""

from __future__ import annotations

from tests.benchmarks.test_host_call import run


def test_the_benchmark_prints_its_table() -> None:
    text = run("-m", "benchmarks.host_network", "--calls", "10")
    launches = {
        line.split("│")[1].strip(): int(line.split("│")[3]) for line in text.splitlines()
        if "│" in line
    }  # fmt: skip
    assert launches["tconv modules, eager"] >= launches["torch.compile, backend tconv"] > 0
    assert launches["torch modules, eager"] == 0
