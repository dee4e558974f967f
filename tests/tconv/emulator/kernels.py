"""Triton kernels of other kinds than the project's, written for the emulator's tests."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr, b_ptr, c_ptr, m, n, k, a_stride, b_stride, c_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """c = a @ b, tile by tile, by address."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        left = start + steps < k
        a = tl.load(
            a_ptr + rows[:, None] * a_stride + (start + steps)[None, :],
            mask=(rows < m)[:, None] & left[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + (start + steps)[:, None] * b_stride + columns[None, :],
            mask=left[:, None] & (columns < n)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total)
    tl.store(
        c_ptr + rows[:, None] * c_stride + columns[None, :],
        total.to(c_ptr.dtype.element_ty),
        mask=(rows < m)[:, None] & (columns < n)[None, :],
    )


@triton.jit
def matmul_described(
    a, b, c, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """c = a @ b by boxes of tensor descriptors that the host made."""
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
    """c = a @ b by descriptors that the kernel makes, in scratch memory."""
    a = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [BLOCK_M, BLOCK_K])
    b = tl.make_tensor_descriptor(b_ptr, [k, n], [n, 1], [BLOCK_K, BLOCK_N])
    c = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [BLOCK_M, BLOCK_N])
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        total = tl.dot(a.load([row, start]), b.load([start, column]), total)
    c.store([row, column], total.to(tl.float16))


@triton.jit
def softmax(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    """A row a program."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + column, mask=column < columns, other=-float("inf"))
    exponents = tl.exp(x - tl.max(x, 0))
    tl.store(
        y_ptr + row * columns + column, exponents / tl.sum(exponents, 0), mask=column < columns
    )


@triton.jit
def row_sums(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    """tl.sum over a row that is longer than a block."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + column
        total += tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0)
    tl.store(y_ptr + row, tl.sum(total, 0))


@triton.jit
def histogram(x_ptr, counts_ptr, elements, BLOCK: tl.constexpr):
    """Counts of values, by atomic additions that meet in a few words."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x_ptr + at, mask=at < elements, other=0)
    tl.atomic_add(counts_ptr + value, 1, mask=at < elements)


@triton.jit
def total(x_ptr, y_ptr, elements, BLOCK: tl.constexpr):
    """One atomic addition of a float a program."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr, tl.sum(tl.load(x_ptr + at, mask=at < elements, other=0.0), 0))


@triton.jit
def layer_norm(x_ptr, w_ptr, b_ptr, y_ptr, columns, eps, BLOCK: tl.constexpr):
    """(x - mean) / sqrt(variance + eps) * w + b, a row a program."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / columns
    centred = tl.where(inside, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / columns + eps)
    w = tl.load(w_ptr + column, mask=inside, other=0.0)
    b = tl.load(b_ptr + column, mask=inside, other=0.0)
    y = (centred * scale * w + b).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * columns + column, y, mask=inside)


@triton.jit
def attention(
    q_ptr, k_ptr, v_ptr, o_ptr, length, scale,
    DEPTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Flash attention's forward pass: softmax(q k^T * scale) v, a block of queries a program."""
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
def scaled(x_ptr, y_ptr, elements, factor, BLOCK: tl.constexpr):
    """y = x * factor, for what is about arguments rather than arithmetic."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < elements, other=0.0)
    tl.store(y_ptr + at, x * factor, mask=at < elements)


@triton.jit
def scaled_unmasked(x_ptr, y_ptr, factor, BLOCK: tl.constexpr):
    """The same without a mask: it leaves its memory where BLOCK does not fit."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at) * factor)


@triton.jit
def sum_of_pair(pair, y_ptr, BLOCK: tl.constexpr):
    """A tuple of a pointer and a number as one argument."""
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(pair[0] + at) + pair[1])
