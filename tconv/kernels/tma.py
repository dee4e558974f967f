"""Implicit matrix products whose operands come as boxes, by tensor memory access (TMA).

The image tile of one filter tap is a box of the four-dimensional tensor: BOX_N images by BOX_H
rows by BOX_W columns by BLOCK_K channels, at the tap's place. The hardware fills zeros in for what
lies outside the image, so that padding costs nothing, and no thread computes an address.

The product is formed with channels before pixels, (channels, reduction) x (reduction, pixels):
both operands then go from shared memory to the matrix unit as they were loaded.
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import (
    activation_argument,
    activation_result,
    channel_terms,
    pooled,
    store_result,
)
from tconv.kernels.index import (
    element_offset,
    group_share,
    next_box,
    store_filter_gradient,
    swizzled_tile,
)


@triton.jit
def box_offset(
    image0,  # where the box begins
    row0,
    column0,
    batch,
    rows,  # of the tensor that it lies in
    columns,
    channel,
    channel_mask,
    CHANNELS: tl.constexpr,
    NHWC: tl.constexpr,
    INDEX: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
):
    """Offset and mask of each element of a box, [channels, pixels], in a dense tensor."""
    element = tl.arange(0, BOX_N * BOX_H * BOX_W)
    image = image0 + element // (BOX_H * BOX_W)
    row = row0 + element // BOX_W % BOX_H
    column = column0 + element % BOX_W
    pixel_mask = (image < batch) & (row < rows) & (column < columns)
    pixel_offset, channel_offset = element_offset(
        image, row.to(INDEX) * columns + column, rows.to(INDEX) * columns, channel, CHANNELS, NHWC,
        INDEX,
    )  # fmt: skip
    at = pixel_offset[None, :] + channel_offset[:, None]
    return at, channel_mask[:, None] & pixel_mask[None, :]


@triton.jit
def store_as_box(tensor, tile, image0, row0, column0, channel0, BOX_N: tl.constexpr,
                 BOX_H: tl.constexpr, BOX_W: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Store a tile of [channels, pixels] as a box of pixels with their channels."""
    box = tl.reshape(tl.trans(tile.to(tensor.dtype)), (BOX_N, BOX_H, BOX_W, BLOCK_N))
    tensor.store([image0, row0, column0, channel0], box)


@triton.jit
def box_windows(tile, BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
                BLOCK_N: tl.constexpr):  # fmt: skip
    """The 2x2 windows, as its last two axes, of a tile of [channels, pixels of a box]."""
    windows = tl.reshape(tile, (BLOCK_N * BOX_N * (BOX_H // 2), 2, BOX_W // 2, 2))
    return tl.permute(windows, (0, 2, 1, 3))


@triton.jit
def store_box(
    sums,  # [BLOCK_N, BOX_N * BOX_H * BOX_W]
    norm,  # (bias, norm_weight, norm_bias, norm_mean, norm_var), each may be None
    residual,
    result,
    kept,
    offsets,
    image0,  # where the box begins
    row0,
    column0,
    group,
    produced0,  # first channel of the tile within its group
    batch,
    rows,
    columns,
    PRODUCED: tl.constexpr,
    GROUPS: tl.constexpr,
    BOXES: tl.constexpr,
    NHWC: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,
    POOL: tl.constexpr,
    INDEX: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Apply the epilogue to a tile of sums and store what it yields, as boxes or by address."""
    bias, norm_weight, norm_bias, norm_mean, norm_var = norm
    produced = produced0 + tl.arange(0, BLOCK_N)
    channel_mask = produced < PRODUCED
    channel = group * PRODUCED + produced
    channel0 = group * PRODUCED + produced0
    offset, scale, shift = channel_terms(
        bias, norm_weight, norm_bias, norm_mean, norm_var, channel, channel_mask, EPS, sums.dtype
    )
    if not BOXES:
        at, mask = box_offset(
            image0, row0, column0, batch, rows, columns, channel, channel_mask,
            GROUPS * PRODUCED, NHWC, INDEX, BOX_N, BOX_H, BOX_W,
        )  # fmt: skip
    more = None
    if residual is not None:
        if BOXES:
            more = residual.load([image0, row0, column0, channel0])
            more = tl.trans(tl.reshape(more, (BOX_N * BOX_H * BOX_W, BLOCK_N)))
        else:
            more = tl.load(residual + at, mask=mask, other=0.0)
    argument = activation_argument(
        sums, offset[:, None], scale[:, None], shift[:, None], more, bias, norm_mean,
        RESIDUAL_AFTER,
    )  # fmt: skip
    if BOXES and kept is not None:  # before y is formed: both would not fit the registers
        store_as_box(kept, argument, image0, row0, column0, channel0, BOX_N, BOX_H, BOX_W, BLOCK_N)
    total = activation_result(argument, more, ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL)
    if BOXES:
        store_as_box(result, total, image0, row0, column0, channel0, BOX_N, BOX_H, BOX_W, BLOCK_N)
    else:
        best_place = None
        if POOL:
            total, argument, best_place = pooled(
                box_windows(total, BOX_N, BOX_H, BOX_W, BLOCK_N),
                box_windows(argument, BOX_N, BOX_H, BOX_W, BLOCK_N),
                kept, ACTIVATION, RESIDUAL_AFTER,
            )  # fmt: skip
            WINDOWS: tl.constexpr = BOX_N * BOX_H * BOX_W // 4
            total = tl.reshape(total, (BLOCK_N, WINDOWS))
            argument = tl.reshape(argument, (BLOCK_N, WINDOWS))
            best_place = tl.reshape(best_place, (BLOCK_N, WINDOWS))
            at, mask = box_offset(
                image0, row0 // 2, column0 // 2, batch, rows // 2, columns // 2, channel,
                channel_mask, GROUPS * PRODUCED, NHWC, INDEX, BOX_N, BOX_H // 2, BOX_W // 2,
            )  # fmt: skip
        store_result(result, kept, offsets, at, mask, total, argument, best_place)


@triton.jit(do_not_specialize=["batch", "rows", "columns", "split_steps"])
def implicit_gemm_tma(
    image,  # boxes of x or dy: [batch, h, w, GROUPS * REDUCED]; at stride 2 a view of it,
    # [batch, h/2, 2, w/2, 2 * GROUPS * REDUCED]
    filters,  # boxes of w: [taps, GROUPS * OUT_CHANNELS, IN_CHANNELS]
    bias,  # [GROUPS * PRODUCED], or None; so may be batch normalization's four
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # boxes or the address of a tensor as the result unpooled, or None
    result,  # boxes of y or dx: [batch, rows, columns, GROUPS * PRODUCED]; or its address
    kept,  # the activation's argument at each element, as the result; or None
    offsets,  # place (0 to 3) of each window's maximum, of a pooled y; or None
    batch,
    rows,  # of the result
    columns,
    split_steps,  # steps of the reduction that one split takes
    REDUCED: tl.constexpr,  # channels of the image, in one group
    PRODUCED: tl.constexpr,  # channels of the result, in one group
    GROUPS: tl.constexpr,
    FILTER_H: tl.constexpr,
    FILTER_W: tl.constexpr,
    STRIDE: tl.constexpr,  # 1 or 2
    FIRST_H: tl.constexpr,  # where the first tap lies, seen from a pixel of the result
    FIRST_W: tl.constexpr,
    STEP_H: tl.constexpr,  # from one tap to the next
    STEP_W: tl.constexpr,
    REDUCED_FIRST: tl.constexpr,  # whether a box of filters is [BLOCK_K, BLOCK_N]
    BOXES: tl.constexpr,  # whether the result is stored as boxes
    NHWC: tl.constexpr,  # if not: whether its channels come last
    SPLIT: tl.constexpr,  # whether the reduction is split; the result then holds its parts
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # a name that activations.activate knows, or None
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added after the activation
    POOL: tl.constexpr,  # whether y is pooled 2x2; a box then holds whole windows
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """y = x * w + bias, or dx from dy and w at stride 1: taps are then walked backwards."""
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    TAP_STEPS: tl.constexpr = (REDUCED + BLOCK_K - 1) // BLOCK_K
    WINDOW: tl.constexpr = 2 if POOL else 1
    boxes_h = tl.cdiv(rows // WINDOW * WINDOW, BOX_H)
    boxes_w = tl.cdiv(columns // WINDOW * WINDOW, BOX_W)
    boxes = tl.cdiv(batch, BOX_N) * boxes_h * boxes_w
    group, program, programs = group_share(GROUPS)
    tiles_n: tl.constexpr = (PRODUCED + BLOCK_N - 1) // BLOCK_N
    first_step = 0
    last_step = TAPS * TAP_STEPS
    if SPLIT:
        first_step = tl.program_id(1) * split_steps
        last_step = tl.minimum(first_step + split_steps, TAPS * TAP_STEPS)
        result += tl.program_id(1).to(tl.int64) * batch * rows * columns * (GROUPS * PRODUCED)

    # disable_licm: values hoisted out of this loop would occupy registers in the inner loop.
    tiles = boxes * tiles_n
    for tile in tl.range(program, tiles, programs, disable_licm=True):
        box, tile_column = swizzled_tile(tile, boxes, tiles_n, SWIZZLE)
        image0 = box // (boxes_h * boxes_w) * BOX_N
        row0 = box // boxes_w % boxes_h * BOX_H
        column0 = box % boxes_w * BOX_W
        produced0 = tile_column * BLOCK_N

        accumulator = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
        tap = first_step // TAP_STEPS
        reduced0 = first_step % TAP_STEPS * BLOCK_K  # first channel of the step
        tap_row = FIRST_H + tap // FILTER_W * STEP_H
        tap_column = FIRST_W + tap % FILTER_W * STEP_W
        for _ in range(first_step, last_step):
            if STRIDE == 1:
                pixels = image.load(
                    [image0, row0 + tap_row, column0 + tap_column, group * REDUCED + reduced0]
                )
            else:  # rows of the view are pairs: an offset is so many pairs, and the odd one
                pair_row = row0 + (tap_row >> 1)
                pair_column = column0 + (tap_column >> 1)
                in_channel = ((tap_column & 1) * GROUPS + group) * REDUCED + reduced0
                pixels = image.load([image0, pair_row, tap_row & 1, pair_column, in_channel])
            pixels = tl.reshape(pixels, (BLOCK_M, BLOCK_K))
            if REDUCED_FIRST:
                w_box = filters.load([tap, group * REDUCED + reduced0, produced0])
                w_tile = tl.trans(tl.reshape(w_box, (BLOCK_K, BLOCK_N)))
            else:
                w_box = filters.load([tap, group * PRODUCED + produced0, reduced0])
                w_tile = tl.reshape(w_box, (BLOCK_N, BLOCK_K))
            accumulator = tl.dot(
                w_tile, tl.trans(pixels), accumulator,
                input_precision=PRECISION, out_dtype=ACCUMULATOR,
            )  # fmt: skip
            reduced0 += BLOCK_K
            if TAPS > 1:
                tap_done = reduced0 >= REDUCED
                reduced0 = tl.where(tap_done, 0, reduced0)
                tap += tap_done.to(tl.int32)
                tap_column += tl.where(tap_done, STEP_W, 0)
                row_done = tap_column == FIRST_W + FILTER_W * STEP_W
                tap_column = tl.where(row_done, FIRST_W, tap_column)
                tap_row += tl.where(row_done, STEP_H, 0)

        store_box(
            accumulator, (bias, norm_weight, norm_bias, norm_mean, norm_var), residual, result,
            kept, offsets, image0, row0, column0, group, produced0, batch, rows, columns,
            PRODUCED, GROUPS, BOXES, NHWC, EPS, ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL, INDEX,
            BOX_N, BOX_H, BOX_W, BLOCK_N,
        )  # fmt: skip


@triton.jit(do_not_specialize=["batch", "out_h", "out_w", "boxes", "split_boxes"])
def implicit_gemm_tma_wgrad(
    image,  # boxes of x: [batch, in_h, in_w, GROUPS * IN_CHANNELS]; at stride 2 its view, as above
    gradient,  # boxes of dy: [batch, out_h, out_w, GROUPS * OUT_CHANNELS]; batch third if
    # ALONG_BATCH
    dw,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS], or channels before taps; or
    # its parts
    batch,
    out_h,
    out_w,
    boxes,  # boxes of pixels, in total
    split_boxes,  # boxes of one split
    IN_CHANNELS: tl.constexpr,  # of one group, as OUT_CHANNELS is
    OUT_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    PACK: tl.constexpr,  # narrow groups multiplied as one; their diagonal blocks are stored
    FILTER_H: tl.constexpr,
    FILTER_W: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    DW_NHWC: tl.constexpr,
    ALONG_BATCH: tl.constexpr,  # a box is one pixel of BOX_N images; the views have batch third
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """Gradient of the filters: (filters, pixels) x (pixels, channels of one tap).

    Boxes must divide the images' rows and columns: beyond a border dy reads as zero but x may hold
    an infinity, and their product is NaN. Beyond the batch, or for 1x1 filters without padding,
    both read as zero.
    """
    BLOCK_K: tl.constexpr = BOX_N * BOX_H * BOX_W
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    TAP_TILES: tl.constexpr = (IN_CHANNELS + BLOCK_N - 1) // BLOCK_N
    group, program, _ = group_share(GROUPS)
    tile_row, tile_column = swizzled_tile(
        program, tl.cdiv(OUT_CHANNELS, BLOCK_M), TAPS * TAP_TILES, SWIZZLE
    )
    split = tl.program_id(1)
    tap = tile_column // TAP_TILES
    channel0 = tile_column % TAP_TILES * BLOCK_N
    tap_row = tap // FILTER_W * DILATION_H - PAD_H
    tap_column = tap % FILTER_W * DILATION_W - PAD_W

    boxes_w = tl.cdiv(out_w, BOX_W)
    boxes_h = tl.cdiv(out_h, BOX_H)
    first = split * split_boxes
    image0 = first // (boxes_w * boxes_h) * BOX_N
    row0 = first // boxes_w % boxes_h * BOX_H
    column0 = first % boxes_w * BOX_W
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    for _ in range(first, tl.minimum(first + split_boxes, boxes)):
        out_channel0 = group * OUT_CHANNELS + tile_row * BLOCK_M
        in_channel0 = group * IN_CHANNELS + channel0
        in_row = row0 + tap_row
        in_column = column0 + tap_column
        if STRIDE == 2:  # x is viewed as pairs of rows and of columns
            in_row = row0 + (tap_row >> 1)
            in_column = column0 + (tap_column >> 1)
            odd_row = tap_row & 1
            in_channel0 += (tap_column & 1) * (GROUPS * IN_CHANNELS)
        # Both operands reach the matrix unit unread where all but a box's last two sides are 1.
        if ALONG_BATCH:
            dy_box = gradient.load([row0, column0, image0, out_channel0])
            if STRIDE == 1:
                x_box = image.load([in_row, in_column, image0, in_channel0])
            else:
                x_box = image.load([in_row, odd_row, in_column, image0, in_channel0])
        else:
            dy_box = gradient.load([image0, row0, column0, out_channel0])
            if STRIDE == 1:
                x_box = image.load([image0, in_row, in_column, in_channel0])
            else:
                x_box = image.load([image0, in_row, odd_row, in_column, in_channel0])
        accumulator = tl.dot(
            tl.trans(tl.reshape(dy_box, (BLOCK_K, BLOCK_M))), tl.reshape(x_box, (BLOCK_K, BLOCK_N)),
            accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
        image0, row0, column0, _, _ = next_box(
            image0, row0, column0, out_h, out_w, BOX_N, BOX_H, BOX_W
        )

    out_channel = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = channel0 + tl.arange(0, BLOCK_N)
    store_filter_gradient(
        dw, accumulator, split, group, out_channel, out_channel < OUT_CHANNELS,
        tap * IN_CHANNELS + channel, channel < IN_CHANNELS, tap,
        IN_CHANNELS, OUT_CHANNELS, GROUPS, TAPS, PACK, DW_NHWC, INDEX,
    )  # fmt: skip
