"""The benchmark of a network's host cost: each way runs, and ours launch on the fake driver."""

from __future__ import annotations

import json

from tests.benchmarks.test_host_call import run

PROBE = """
import json
from benchmarks import host_call, host_network
found = host_network.measure(calls=2, rounds=2, inductor=False)
assert host_call.FakeUtils.launched > 0
print(json.dumps(found))
"""


def test_every_way_is_timed_and_ours_launch_kernels() -> None:
    found = json.loads(run("-c", PROBE))
    times = {name for name in found if name.endswith("_us")}
    assert times == {
        "tconv_eager_us", "tconv_compiled_rest_eager_us", "torch_eager_us",
        "torch_compiled_eager_us", "torch_compiled_aot_eager_us",
    }  # fmt: skip
    assert all(found[name] > 0 for name in times)
    # The fused kernels were launched: torch's convolution would leave none in the log.
    eager, compiled = found["tconv_eager_launches"], found["tconv_compiled_rest_eager_launches"]
    assert eager > compiled >= 3
