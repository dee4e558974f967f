"""An emulated GPU: runs the PTX that Triton compiles for sm_80 and sm_90 on the CPU.

All threads of several thread blocks are lanes of NumPy arrays. Every access to memory is checked
and counted. The package knows Triton and the limits of a GPU, and nothing of convolution; it is
imported only on request. It gives values and counts, never time.
"""

from tconv.emulator.counters import Counters
from tconv.emulator.driver import Launched
from tconv.emulator.faults import Fault, NotCovered
from tconv.emulator.installation import (
    copies_filled,
    install,
    install_asked,
    installed,
    launches,
)
from tconv.emulator.launcher import Copies
from tconv.emulator.machine import Machine
from tconv.emulator.memory import Memory
from tconv.emulator.ptx import Program
from tconv.emulator.tensor_map import TensorMap

__all__ = [
    "Copies",
    "Counters",
    "Fault",
    "Launched",
    "Machine",
    "Memory",
    "NotCovered",
    "Program",
    "TensorMap",
    "copies_filled",
    "install",
    "install_asked",
    "installed",
    "launches",
]
