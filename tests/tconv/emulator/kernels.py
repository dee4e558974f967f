"""Triton kernels of common kinds, which the tests of the emulator launch or compile."""

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """C = A B through pointers: a pipelined loop of masked loads."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        inside = start + depth < k
        left = tl.load(
            a + rows[:, None] * k + (start + depth)[None, :],
            mask=(rows < m)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            b + (start + depth)[:, None] * n + columns[None, :],
            mask=inside[:, None] & (columns < n)[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(left, right, total)
    where = c + rows[:, None] * n + columns[None, :]
    tl.store(where, total.to(c.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def matmul_boxes(a, b, c, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """C = A B through tensor maps, for loads and the store."""
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        total = tl.dot(a.load([row, start]), b.load([start, column]), total)
    c.store([row, column], total.to(tl.float16))


@triton.jit
def matmul_describing(
    a_ptr, b_ptr, c_ptr, m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """C = A B through tensor descriptors that the kernel makes in scratch memory."""
    a = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [BLOCK_M, BLOCK_K])
    b = tl.make_tensor_descriptor(b_ptr, [k, n], [n, 1], [BLOCK_K, BLOCK_N])
    c = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [BLOCK_M, BLOCK_N])
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        total = tl.dot(a.load([row, start]), b.load([start, column]), total)
    c.store([row, column], total.to(tl.float16))


@triton.jit
def softmax(x, y, length, BLOCK: tl.constexpr):
    """Softmax with one row per program."""
    place = tl.arange(0, BLOCK)
    row = tl.program_id(0) * length
    value = tl.load(x + row + place, mask=place < length, other=float("-inf"))
    shifted = tl.exp(value - tl.max(value, axis=0))
    tl.store(y + row + place, shifted / tl.sum(shifted, axis=0), mask=place < length)


@triton.jit
def layer_norm(x, weight, bias, y, length, BLOCK: tl.constexpr):
    """Layer norm with one row per program."""
    place = tl.arange(0, BLOCK)
    row = tl.program_id(0) * length
    inside = place < length
    value = tl.load(x + row + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / length
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / length + 1e-5)
    result = centred * scale * tl.load(weight + place, mask=inside) + tl.load(
        bias + place, mask=inside
    )
    tl.store(y + row + place, result, mask=inside)


@triton.jit
def row_sums(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    """Sums of rows that are longer than a block."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + column
        total += tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0)
    tl.store(y_ptr + row, tl.sum(total, 0))


@triton.jit
def column_sums(x, y, rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums of columns and a transposed copy, through shared memory."""
    row, column = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    tl.store(y + column, tl.sum(value, axis=0), mask=column < columns)


@triton.jit
def histogram(x, counts, total, length, BLOCK: tl.constexpr):
    """Counts of values below 16 and their sum, with atomic additions."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < length
    value = tl.load(x + place, mask=inside, other=0)
    tl.atomic_add(counts + value, 1, mask=inside)
    tl.atomic_add(total, tl.sum(value.to(tl.float32), axis=0))


@triton.jit
def attention(
    q_ptr, k_ptr, v_ptr, o_ptr, length, scale,
    DEPTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Flash attention's forward pass, softmax(q k^T * scale) v, a block of queries per program."""
    base = tl.program_id(1) * length * DEPTH
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    depth = tl.arange(0, DEPTH)
    at_q = base + queries[:, None] * DEPTH + depth[None, :]
    q = tl.load(q_ptr + at_q, mask=(queries < length)[:, None], other=0.0)
    top = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    norm = tl.zeros((BLOCK_Q,), tl.float32)
    total = tl.zeros((BLOCK_Q, DEPTH), tl.float32)
    for start in range(0, length, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        at_k = base + keys[:, None] * DEPTH + depth[None, :]
        k = tl.load(k_ptr + at_k, mask=(keys < length)[:, None], other=0.0)
        v = tl.load(v_ptr + at_k, mask=(keys < length)[:, None], other=0.0)
        scores = tl.dot(q, k.T) * scale
        seen = (keys < length)[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= queries[:, None])
        scores = tl.where(seen, scores, -1.0e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fade = tl.exp(top - higher)
        norm = norm * fade + tl.sum(weights, 1)
        total = tl.dot(weights.to(v.dtype), v, total * fade[:, None])
        top = higher
    result = (total / norm[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_ptr + at_q, result, mask=(queries < length)[:, None])


@triton.jit
def attention_of_one_head(
    q, k, v, out, length, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DEPTH: tl.constexpr
):
    """Flash attention's forward pass for one head."""
    rows, depth = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, DEPTH)
    query = tl.load(
        q + rows[:, None] * DEPTH + depth[None, :], mask=(rows < length)[:, None], other=0.0
    )
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, DEPTH), tl.float32)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        key = tl.load(
            k + keys[None, :] * DEPTH + depth[:, None], mask=(keys < length)[None, :], other=0.0
        )
        score = tl.where((keys < length)[None, :], tl.dot(query, key) * scale, float("-inf"))
        now = tl.maximum(best, tl.max(score, axis=1))
        part, fade = tl.exp(score - now[:, None]), tl.exp(best - now)
        weight = weight * fade + tl.sum(part, axis=1)
        value = tl.load(
            v + keys[:, None] * DEPTH + depth[None, :], mask=(keys < length)[:, None], other=0.0
        )
        total = total * fade[:, None] + tl.dot(part.to(tl.float16), value)
        best = now
    where = out + rows[:, None] * DEPTH + depth[None, :]
    tl.store(where, total / weight[:, None], mask=(rows < length)[:, None])


@triton.jit
def scaled(x_ptr, y_ptr, elements, factor, BLOCK: tl.constexpr):
    """y = x * factor, for tests of argument passing."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < elements, other=0.0)
    tl.store(y_ptr + at, x * factor, mask=at < elements)


@triton.jit
def scaled_unmasked(x_ptr, y_ptr, factor, BLOCK: tl.constexpr):
    """y = x * factor without a mask: out of bounds if BLOCK does not divide the size."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at) * factor)


@triton.jit
def sum_of_pair(pair, y_ptr, BLOCK: tl.constexpr):
    """Takes a tuple of a pointer and a number as one argument."""
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(pair[0] + at) + pair[1])
