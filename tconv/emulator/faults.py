"""Faults: errors that the emulated GPU raises when a kernel breaks a rule of the hardware."""

from __future__ import annotations

from dataclasses import dataclass, replace

KINDS = (
    "out of bounds",
    "uninitialised read",
    "misaligned access",
    "shared memory race",
    "missing wait",
    "missing fence",
    "buffer reused too soon",
    "deadlock",
    "barrier misuse",
    "divergent warp",
    "tensor map",
    "matrix descriptor",
    "launch limit",
    "divisibility hint",
    "trap",
)


@dataclass
class Fault(Exception):  # noqa: N818, the word for what it reports
    """A rule of the GPU that the emulated kernel broke.

    ``kind`` is one of `KINDS`. ``source`` is the ``file:line`` of the Triton source, ``thread``
    names the thread block and the thread within it, ``address`` is the byte address concerned.
    What is not known is empty.
    """

    kind: str
    message: str
    kernel: str = ""
    source: str = ""
    instruction: str = ""
    thread: str = ""
    address: int | None = None

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def __str__(self) -> str:
        where = [part for part in (self.kernel, self.source, self.thread) if part]
        if self.address is not None:
            where.append(f"address {self.address:#x}")
        text = f"{self.kind}: {self.message}"
        if where:
            text += f" ({', '.join(where)})"
        return text + (f" [{self.instruction}]" if self.instruction else "")

    def at(self, kernel: str, source: str, instruction: str) -> Fault:
        """The same fault with the place in the program filled in."""
        return replace(self, kernel=kernel, source=source, instruction=instruction)

    def as_dict(self) -> dict[str, str | int | None]:
        """The fields as plain values, for JSON."""
        return {
            "kind": self.kind,
            "message": self.message,
            "kernel": self.kernel,
            "source": self.source,
            "instruction": self.instruction,
            "thread": self.thread,
            "address": self.address,
        }


class NotCovered(Exception):  # noqa: N818
    """The code uses an architecture or an instruction that the emulator does not know."""
