"""``wgmma``: asynchronous matrix products of warpgroups, whose operands lie in shared memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.faults import Fault, NotCovered
from tconv.emulator.matrix import ITEM, left_fragment, sizes, to_values
from tconv.emulator.state import State
from tconv.emulator.tensor_map import swizzled

Array = NDArray[Any]
CHUNK, PERIOD, GROUP, ROWS = 16, 1024, 128, 64
MODES = {0: 0, 1: 3, 2: 2, 3: 1}  # a descriptor's swizzle number: bits that are xor-ed


class InFlight:
    """Content of a register while a product into it is in flight in some lanes.

    Lanes that no product concerns may use ``values``; for others any use is a fault.
    """

    def __init__(self, units: WarpGroups, place: int, values: Array) -> None:
        self.units, self.place, self.values = units, place, values

    def check(self) -> Array:
        """The values, if no lane in execution waits for a product."""
        mask = self.units.machine.mask
        for chain in self.units.chains:
            if self.place in chain.members and (mask is None or mask[chain.lanes].any()):
                raise Fault(
                    "missing wait",
                    f"an accumulator is used while {chain.opcode} into it is under way",
                    thread=self.units.machine.thread_name(int(chain.lanes[0])),
                )
        return self.values

    def __array__(self, *_: Any, **__: Any) -> Array:
        return self.check()

    def view(self, dtype: Any) -> Array:
        """The values as another type."""
        return self.check().view(dtype)

    def astype(self, dtype: Any) -> Array:
        """The values converted."""
        return self.check().astype(dtype)

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [item.check() if isinstance(item, InFlight) else item for item in inputs]
        return getattr(function, method)(*plain, **options)

    def __invert__(self) -> Any:
        return ~self.check()

    def __getitem__(self, place: Any) -> Any:
        return self.check()[place]

    def __and__(self, other: Any) -> Any:
        return self.check() & other

    def __or__(self, other: Any) -> Any:
        return self.check() | other

    def __xor__(self, other: Any) -> Any:
        return self.check() ^ other

    def __lshift__(self, other: Any) -> Any:
        return self.check() << other

    def __rshift__(self, other: Any) -> Any:
        return self.check() >> other

    def __add__(self, other: Any) -> Any:
        return self.check() + other

    def __sub__(self, other: Any) -> Any:
        return self.check() - other

    def __mul__(self, other: Any) -> Any:
        return self.check() * other


@dataclass
class Product:
    """One ``wgmma.mma_async`` of some warpgroups: where its operands lie."""

    kind: tuple[str, str]
    a: Array | None  # chunk numbers in shared memory
    b: Array
    fragment: Array | None  # A, if it comes from registers
    a_transposed: bool
    b_transposed: bool
    granules: list[Array]
    age: int = 0  # commits since it was issued

    def part(self, which: Array) -> Product:
        """The product of some of the warpgroups."""
        return replace(
            self,
            a=None if self.a is None else self.a[which],
            b=self.b[which],
            fragment=None if self.fragment is None else self.fragment[which],
            granules=[granules[which] for granules in self.granules],
        )


@dataclass
class Chain:
    """Products of some warpgroups that add up in the same registers."""

    places: tuple[int, ...]
    members: frozenset[int]
    opcode: str
    groups: Array  # warpgroups
    columns: int
    result: str
    start: Array  # (warpgroups, 64, columns)
    products: list[Product] = field(default_factory=list)

    @property
    def lanes(self) -> Array:
        """The lanes of its warpgroups."""
        return (self.groups[:, None] * GROUP + np.arange(GROUP)).ravel()

    def part(self, which: Array) -> Chain:
        """The chain of some of the warpgroups."""
        return replace(
            self,
            groups=self.groups[which],
            start=self.start[which],
            products=[product.part(which) for product in self.products],
        )


class WarpGroups:
    """Matrix units of the warpgroups that run side by side."""

    def __init__(self, machine: State) -> None:
        self.machine = machine
        self.count = machine.lanes // GROUP
        self.everyone = np.arange(self.count)
        self.chains: list[Chain] = []
        self.fenced = np.zeros(self.count, bool)
        self.patterns: dict[tuple[Any, ...], Array] = {}
        self.held: dict[tuple[int, ...], tuple[list[Array], Array]] = {}

    def _select(self, index: int, mask: Array | None) -> Array:
        """The warpgroups at an instruction; chains are cut so that each is all in or all out."""
        lanes = self.machine.select(index, mask)
        if lanes is None:
            return self.everyone
        assert mask is not None
        rows = mask.reshape(-1, GROUP)
        partly = rows.any(axis=1) & ~rows.all(axis=1)
        if partly.any():
            group = int(partly.argmax())
            raise Fault(
                "divergent warp",
                "only some lanes of a warpgroup are at an instruction for whole warpgroups",
                thread=self.machine.thread_name(GROUP * group + int(rows[group].argmax())),
            )
        here: Array = np.asarray(rows.all(axis=1))
        cut: list[Chain] = []
        for chain in self.chains:
            inside = here[chain.groups]
            if inside.all() or not inside.any():
                cut.append(chain)
            else:
                cut += [chain.part(np.flatnonzero(inside)), chain.part(np.flatnonzero(~inside))]
        self.chains = cut
        return np.flatnonzero(here)

    def _chains_of(self, groups: Array) -> list[Chain]:
        if len(groups) == self.count:
            return list(self.chains)
        return [chain for chain in self.chains if np.isin(chain.groups, groups).all()]

    def fence(self, index: int, mask: Array | None) -> None:
        """``wgmma.fence``: registers written before are ready for the matrix unit."""
        self.fenced[self._select(index, mask)] = True

    def commit(self, index: int, mask: Array | None) -> None:
        """``wgmma.commit_group``."""
        for chain in self._chains_of(self._select(index, mask)):
            for product in chain.products:
                product.age += 1

    # -- operands

    def _uniform(self, value: Array, groups: Array) -> Array:
        rows = self.machine.lane_array(value).reshape(-1, GROUP)[groups]
        if not (rows == rows[:, :1]).all():
            raise Fault(
                "matrix descriptor", "the threads of a warpgroup give different descriptors"
            )
        return rows[:, 0]

    def _chunks(
        self, groups: Array, value: Array, rows: int, depth: int, size: int, transposed: bool
    ) -> Array:
        """Numbers of 16-byte chunks of an operand: (warpgroups, rows, chunks along K), or
        (warpgroups, depth, chunks along the rows) of a transposed one.
        """
        shared = self.machine.shared
        descriptor = self._uniform(value, groups)
        upper = descriptor >> np.uint64(14)
        if not (upper == upper[0]).all():
            raise Fault("matrix descriptor", "warpgroups give descriptors of different layouts")
        first = int(descriptor[0])
        base = ((descriptor & np.uint64(0x3FFF)) << np.uint64(4)).astype(np.int64)
        offset = base & (PERIOD - 1)
        out = []
        for part in np.unique(offset):
            key = (first >> 14, int(part), rows, depth, size, transposed)
            if key not in self.patterns:
                self.patterns[key] = self._pattern(first, int(part), rows, depth, size, transposed)
            out.append((part, self.patterns[key]))
        block = shared.lane_base[groups * GROUP]
        if len(out) == 1:
            chunks = out[0][1][None] + ((base - offset + block) // CHUNK)[:, None, None]
        else:
            table = {int(part): pattern for part, pattern in out}
            stacked = np.stack([table[int(part)] for part in offset])
            chunks = stacked + ((base - offset + block) // CHUNK)[:, None, None]
        last = chunks.reshape(len(base), -1).max(axis=1) * CHUNK + CHUNK - block
        if (last > shared.size).any():
            position = int((last > shared.size).argmax())
            raise Fault(
                "matrix descriptor",
                f"an operand reaches byte {int(last[position])} of {shared.size} of shared memory",
                thread=self.machine.thread_name(int(groups[position]) * GROUP),
                address=int(base[position]),
            )
        return chunks

    def _pattern(
        self, descriptor: int, offset: int, rows: int, depth: int, size: int, transposed: bool
    ) -> Array:
        leading = ((descriptor >> 16) & 0x3FFF) << 4
        stride = ((descriptor >> 32) & 0x3FFF) << 4
        mode = MODES[(descriptor >> 62) & 3]
        if (descriptor >> 49) & 7:
            raise Fault("matrix descriptor", "a base offset is not covered: operands start aligned")
        span = CHUNK << mode
        per = CHUNK // size  # items of a chunk
        if not transposed:
            r = np.arange(rows)[:, None]
            k = np.arange(depth // per)[None, :]
            along = k * leading if mode == 0 else k * CHUNK
            linear = (r % 8) * span + (r // 8) * stride + along
        else:
            k = np.arange(depth)[:, None]
            r = np.arange(rows // per)[None, :]
            if mode == 0:
                linear = (k % 8) * CHUNK + (k // 8) * leading + r * stride
            else:
                wide = span // CHUNK
                linear = (
                    (k % 8) * span + (k // 8) * stride + (r // wide) * leading + r % wide * CHUNK
                )
        return swizzled((offset + linear).astype(np.int64), mode) // CHUNK

    def _read(self, chunks: list[Array], kind: str, transposed: bool) -> Array:
        """Values of an operand's products side by side: (warpgroups, rows, depth)."""
        size = ITEM[kind]
        axis = 1 if transposed else 2
        joined = chunks[0] if len(chunks) == 1 else np.concatenate(chunks, axis=axis)
        words = self.machine.shared.rows(size, CHUNK // size).take(joined, axis=0)
        values = to_values(words.reshape(*joined.shape[:2], -1), kind)
        return values.swapaxes(1, 2) if transposed else values

    # -- products

    def multiply(
        self, index: int, mask: Array | None, registers: list[Any], shape: str,
        kinds: tuple[str, ...], places: tuple[int, ...], left: Any, right: Any, keep: Any,
        flags: tuple[int, ...],
    ) -> None:  # fmt: skip
        """``wgmma.mma_async``: begin a product; its registers are not to be used until a wait."""
        groups = self._select(index, mask)
        if not len(groups):
            return
        machine = self.machine
        _, columns, depth = sizes(shape)
        result, a_kind, b_kind = kinds
        if a_kind not in ITEM or b_kind not in ITEM or result not in ("f32", "f16", "s32"):
            raise NotCovered(f"wgmma of {kinds} is not covered")
        if not self.fenced[groups].all():
            raise Fault("missing fence", "no wgmma.fence before the first product after a wait")
        from_registers = isinstance(left, tuple)
        integers = result == "s32"
        scale_a, scale_b, *majors = [*((1, 1) if integers else ()), *flags, 0, 0, 0, 0][:4]
        if scale_a == -1 or scale_b == -1:
            raise NotCovered("wgmma with negated operands is not covered")
        b_transposed = bool(majors[0] if from_registers else majors[1])
        a_transposed = bool(majors[0]) and not from_registers
        size = ITEM[a_kind]
        b = self._chunks(groups, right, columns, depth, size, b_transposed)
        a = fragment = None
        if from_registers:
            words = left_fragment([machine.lane_array(word) for word in left], a_kind, 16, depth)
            fragment = to_values(words, a_kind).reshape(-1, ROWS, depth)[groups]
        else:
            a = self._chunks(groups, left, ROWS, depth, size, a_transposed)
        granules = [self._reserve(groups, chunks) for chunks in (a, b) if chunks is not None]
        product = Product((a_kind, b_kind), a, b, fragment, a_transposed, b_transposed, granules)
        machine.counters.matrix_flops += 2 * ROWS * columns * depth * len(groups)
        kept = (
            np.asarray(keep).reshape(-1, GROUP)[groups, 0]
            if np.ndim(keep)
            else np.full(len(groups), bool(keep))
        )
        opcode = machine.program.instructions[index].opcode
        self._enqueue(registers, places, columns, result, groups, kept, product, opcode)

    def _readers(self, groups: Array) -> list[tuple[Any, slice]]:
        """Positions of warpgroups that share no memory, and their warps."""
        each = self.machine.threads // GROUP
        if each == 1:
            return [(slice(None), slice(0, 4))]
        return [
            (np.flatnonzero(groups % each == place), slice(4 * place, 4 * place + 4))
            for place in range(each)
        ]

    def _reserve(self, groups: Array, chunks: Array) -> Array:
        shared = self.machine.shared
        rows = chunks.reshape(len(groups), -1)
        granules = shared.granules(rows.ravel(), CHUNK).reshape(len(groups), -1)
        first = groups * GROUP
        active = self.machine.active
        self.machine.active = first
        shared.check_async_read(
            granules, shared.lane_block[first], shared.lane_warp[first], "a matrix product"
        )
        self.machine.active = active
        shared.begin_async_read(granules, self._readers(groups))
        return granules

    def _enqueue(
        self, registers: list[Any], places: tuple[int, ...], columns: int, result: str,
        groups: Array, kept: Array, product: Product, opcode: str,
    ) -> None:  # fmt: skip
        left = np.ones(len(groups), bool)
        members = frozenset(places)
        for chain in self._chains_of(groups):
            if chain.places != places:
                if members & chain.members:
                    raise Fault(
                        "missing wait",
                        "a product into registers of which some belong to another under way",
                        thread=self.machine.thread_name(int(chain.lanes[0])),
                    )
                continue
            which = np.searchsorted(groups, chain.groups)
            left[which] = False
            if not kept[which].all():
                self._compute(chain, chain.products)
                for old in chain.products:
                    old.a = old.fragment = None
                chain.products = [replace(old, b=old.b[:0]) for old in chain.products]
                chain.start = np.where(kept[which][:, None, None], chain.start, 0).astype(
                    chain.start.dtype
                )
            chain.products.append(product if len(which) == len(groups) else product.part(which))
        if not left.any():
            return
        which = np.flatnonzero(left)
        start = np.zeros((len(which), ROWS, columns), np.int32 if result == "s32" else np.float32)
        if kept[which].any():
            held = self._gather(registers, places, columns, result)[groups[which]]
            start = np.where(kept[which][:, None, None], held, start)
        mine = product if len(which) == len(groups) else product.part(which)
        self.chains.append(
            Chain(places, members, opcode, groups[which], columns, result, start, [mine])
        )
        for place in places:
            if not isinstance(registers[place], InFlight):
                registers[place] = InFlight(self, place, registers[place])

    def _gather(
        self, registers: list[Any], places: tuple[int, ...], columns: int, result: str
    ) -> Array:
        held = self.held.get(places)
        if held is not None and all(
            registers[place] is row for place, row in zip(places, held[0], strict=True)
        ):
            return held[1]
        plain = [registers[place] for place in places]
        words = np.stack([row.values if isinstance(row, InFlight) else row for row in plain])
        if result == "f16":
            items = words.view(np.float16).reshape(columns // 8, 2, -1, 4, 8, 4, 2)
            values: Array = items.transpose(2, 3, 1, 4, 0, 5, 6).astype(np.float32)
        else:
            items = words.view(np.int32 if result == "s32" else np.float32)
            values = items.reshape(columns // 8, 2, 2, -1, 4, 8, 4).transpose(3, 4, 1, 5, 0, 6, 2)
        return np.ascontiguousarray(values).reshape(-1, ROWS, columns)

    def _scatter(self, chain: Chain) -> list[Array]:
        items = chain.start.reshape(-1, 4, 2, 8, chain.columns // 8, 4, 2)
        if chain.result == "f16":
            halves = items.transpose(4, 2, 0, 1, 3, 5, 6).astype(np.float16)
            words = np.ascontiguousarray(halves).view(np.uint32)
        else:
            words = np.ascontiguousarray(items.transpose(4, 2, 6, 0, 1, 3, 5)).view(np.uint32)
        return list(words.reshape(len(chain.places), -1))

    def _compute(self, chain: Chain, products: list[Product]) -> None:
        """Add products to a chain; those of one layout are one longer product."""
        products = [product for product in products if len(product.b)]
        while products:
            first = products[0]
            layout = (first.kind, first.a_transposed, first.b_transposed, first.a is None)
            alike: list[Product] = []
            rest: list[Product] = []
            for product in products:
                same = (product.kind, product.a_transposed, product.b_transposed, product.a is None)
                (alike if same == layout else rest).append(product)
            products = rest
            if first.a is None:
                fragments = [p.fragment for p in alike if p.fragment is not None]
                a = np.concatenate(fragments, axis=2)
            else:
                a = self._read(
                    [p.a for p in alike if p.a is not None], first.kind[0], first.a_transposed
                )
            b = self._read_once(
                chain.groups, [p.b for p in alike], first.kind[1], first.b_transposed
            )
            groups = len(a) // len(b)
            if groups > 1:
                a = a.reshape(len(b), groups * ROWS, -1)
            total = np.matmul(a, b.swapaxes(1, 2)).reshape(-1, ROWS, chain.columns)
            if chain.result == "s32":
                chain.start = chain.start + total.astype(np.int64).astype(np.int32)
            else:
                chain.start = chain.start + total.astype(np.float32, copy=False)

    def _read_once(self, present: Array, chunks: list[Array], kind: str, transposed: bool) -> Array:
        """B's values; warpgroups of a block that share B get one copy."""
        groups = self.machine.threads // GROUP
        if groups > 1 and len(present) % groups == 0:
            whole = present.reshape(-1, groups)
            together = (whole // groups == whole[:, :1] // groups).all()
            shared = [part.reshape(-1, groups, *part.shape[1:]) for part in chunks]
            if together and all((part == part[:, :1]).all() for part in shared):
                chunks = [part[:, 0] for part in shared]
        return self._read(chunks, kind, transposed)

    def wait(self, index: int, mask: Array | None, most: int) -> None:
        """``wgmma.wait_group``: all but the last ``most`` groups are complete."""
        groups = self._select(index, mask)
        self.fenced[groups] = False
        shared = self.machine.shared
        for chain in self._chains_of(groups):
            done = [product for product in chain.products if product.age > most]
            self._compute(chain, done)
            chain.products = [product for product in chain.products if product.age <= most]
            readers = self._readers(chain.groups)
            for product in done:
                for granules in product.granules:
                    shared.end_async_read(granules, readers)
        finished = [chain for chain in self.chains if not chain.products]
        self.chains = [chain for chain in self.chains if chain.products]
        for chain in finished:
            self._materialise(chain)

    def _materialise(self, chain: Chain) -> None:
        rows = self._scatter(chain)
        registers = self.machine.registers
        whole = len(chain.groups) == self.count
        busy = {place for other in self.chains for place in other.members}
        lanes = chain.lanes
        for place, row in zip(chain.places, rows, strict=True):
            old = registers[place]
            value = row
            if not whole:
                value = (old.values if isinstance(old, InFlight) else old).copy()
                value[lanes] = row
            registers[place] = InFlight(self, place, value) if place in busy else value
        if whole:
            self.held[chain.places] = rows, chain.start

    def finish(self) -> None:
        """The blocks end: products that nobody waited for are an error."""
        if self.chains:
            raise Fault("missing wait", "the kernel ends while matrix products are under way")
