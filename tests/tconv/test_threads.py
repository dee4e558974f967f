"""Tests of calls of one module from several host threads.

With a fake driver, kernels are really compiled at the first calls, and the launches' arguments are
checked; in the interpreter, and in ``test_on_gpu.py`` on a GPU, the results are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import tconv

ROOT = Path(__file__).parents[2]
PROBE = '''
import threading
import torch
from benchmarks import host_call

host_call.install()
seen = []  # of each launch: its thread, and where its tensors lie


def launch(self, *given):
    # Triton 3.6 passes the arguments one by one.
    last = given[-1] if isinstance(given[-1], (tuple, list)) else given
    places = {each.data_ptr() for each in last if hasattr(each, "data_ptr")}
    places |= {each for each in last if type(each) is int}  # a tensor map: see describe
    seen.append((threading.get_ident(), places))


def describe(self, address, *_):
    """Return the tensor's address in place of a tensor map."""
    return address


host_call.FakeUtils.launch = launch
host_call.FakeUtils.fill_tma_descriptor = host_call.FakeUtils.fill_tma_descriptor_tiled = describe
import tconv

THREADS, CALLS = 4, 25
layers = [tconv.Conv2d(16, 24, 3, padding=1).half(), tconv.Conv2d(24, 8, 1).half()]
last = torch.channels_last
xs = [torch.zeros(2, 16, 9, 9, dtype=torch.float16).to(memory_format=last) for _ in range(THREADS)]
start, errors, mine = threading.Barrier(THREADS), [], {}

def work(x):
    mine[threading.get_ident()] = x.data_ptr()
    try:
        start.wait()
        for _ in range(CALLS):
            with torch.no_grad():
                z = layers[0](x)
                assert z.shape == (2, 24, 9, 9)
                layers[1](z)
    except Exception as error:
        errors.append(repr(error))

threads = [threading.Thread(target=work, args=(x,)) for x in xs]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
assert len(mine) == THREADS
for thread, x in mine.items():
    launches = [held for who, held in seen if who == thread]
    assert len(launches) >= 2 * CALLS, len(launches)
    assert sum(x in held for held in launches) >= CALLS
    others = set(mine.values()) - {x}
    assert not any(held & others for held in launches)
print(len(seen), "launches")
'''


def test_first_calls_from_four_threads_do_not_interfere() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) >= 4 * 25 * 2


@pytest.mark.interpreter
@torch.no_grad()
def test_the_interpreter_runs_one_program_at_a_time() -> None:
    layer = tconv.Conv2d(3, 4, 3)
    images = list(torch.randn(8, 1, 3, 10, 10))
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(torch.no_grad()(layer), images))
    expected = torch.nn.functional.conv2d(torch.cat(images), layer.weight, layer.bias)
    torch.testing.assert_close(torch.cat(results), expected, atol=1e-4, rtol=1e-4)
