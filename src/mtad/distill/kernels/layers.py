"""What stands between the matrix products of a Llama layer: norms with the residual sum, rotation, and the gate."""

import triton
import triton.language as tl


@triton.jit
def add_norm(
    stream_pointer,
    branch_pointer,
    weight_pointer,
    sum_pointer,
    normed_pointer,
    scale_pointer,
    epsilon,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
):
    """One token: stream + branch, in the stream's dtype, and its RMS norm, rounded where transformers rounds it."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = row * WIDTH + columns
    values = tl.load(stream_pointer + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        values += tl.load(branch_pointer + place, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(stream_pointer.dtype.element_ty)
        tl.store(sum_pointer + place, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / WIDTH + epsilon)
    tl.store(scale_pointer + row, scale)
    weight = tl.load(weight_pointer + columns, mask=inside, other=0.0).to(tl.float32)
    normed = (values * scale).to(stream_pointer.dtype.element_ty).to(tl.float32) * weight
    tl.store(normed_pointer + place, normed.to(normed_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def add_norm_backward(
    sum_pointer,
    scale_pointer,
    weight_pointer,
    normed_gradient_pointer,
    sum_gradient_pointer,
    stream_gradient_pointer,
    branch_gradient_pointer,
    weight_gradient_pointer,
    num_rows,
    ROWS_EACH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_SUM_GRADIENT: tl.constexpr,
):
    """Some tokens: gradients of stream and branch, and their part of the weight's, `[programs, WIDTH]` float32."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    weight = tl.load(weight_pointer + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    weight_gradient = tl.zeros([BLOCK], tl.float32)
    for number in range(ROWS_EACH):
        row = program.to(tl.int64) * ROWS_EACH + number
        place = row * WIDTH + columns
        inside = (columns < WIDTH) & (row < num_rows)
        scale = tl.load(scale_pointer + row, mask=row < num_rows, other=0.0)
        unit = tl.load(sum_pointer + place, mask=inside, other=0.0).to(tl.float32) * scale
        outer = tl.load(normed_gradient_pointer + place, mask=inside, other=0.0).to(tl.float32)
        weight_gradient += outer * unit
        inner = outer * weight
        gradient = scale * (inner - unit * (tl.sum(inner * unit, 0) / WIDTH))
        if HAS_SUM_GRADIENT:
            gradient += tl.load(sum_gradient_pointer + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(stream_gradient_pointer + place, gradient.to(stream_gradient_pointer.dtype.element_ty), mask=inside)
        if HAS_BRANCH:
            rounded = gradient.to(branch_gradient_pointer.dtype.element_ty)
            tl.store(branch_gradient_pointer + place, rounded, mask=inside)
    tl.store(weight_gradient_pointer + program.to(tl.int64) * WIDTH + columns, weight_gradient, mask=columns < WIDTH)


@triton.jit(do_not_specialize=["length"])
def rotate(
    states_pointer,
    rotated_pointer,
    cosine_pointer,
    sine_pointer,
    length,
    sign,
    HEADS: tl.constexpr,
    ROTATED_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PADDED_HALF: tl.constexpr,
):
    """One token: its first heads turned by its position, the others copied; `sign` -1 turns back.

    `cosine` and `sine` are `[length, 2 * HALF]` float32, whose halves are alike.
    """
    row = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, PADDED_HEADS)[:, None]
    columns = tl.arange(0, PADDED_HALF)[None, :]
    inside = (heads < HEADS) & (columns < HALF)
    place = row * (HEADS * 2 * HALF) + heads * (2 * HALF) + columns
    angle = (row % length) * (2 * HALF) + columns
    turns = inside & (heads < ROTATED_HEADS)
    cosine = tl.load(cosine_pointer + angle + heads * 0, mask=turns, other=1.0)
    sine = tl.load(sine_pointer + angle + heads * 0, mask=turns, other=0.0) * sign
    left = tl.load(states_pointer + place, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(states_pointer + place + HALF, mask=inside, other=0.0).to(tl.float32)
    first = left * cosine - right * sine
    second = right * cosine + left * sine
    tl.store(rotated_pointer + place, first.to(rotated_pointer.dtype.element_ty), mask=inside)
    tl.store(rotated_pointer + place + HALF, second.to(rotated_pointer.dtype.element_ty), mask=inside)


@triton.jit
def gate(pointer, gated_pointer, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one token: silu(gate) * up of `[tokens, 2 * WIDTH]`, rounded where transformers rounds it."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = row * (2 * WIDTH) + columns
    value = tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(pointer + place + WIDTH, mask=inside, other=0.0).to(tl.float32)
    opened = (value * tl.sigmoid(value)).to(gated_pointer.dtype.element_ty).to(tl.float32)
    tl.store(gated_pointer + row * WIDTH + columns, (opened * up).to(gated_pointer.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward(pointer, outer_pointer, gradient_pointer, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of both halves."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = row * (2 * WIDTH) + columns
    value = tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(pointer + place + WIDTH, mask=inside, other=0.0).to(tl.float32)
    outer = tl.load(outer_pointer + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    openness = tl.sigmoid(value)
    slope = openness * (1.0 + value * (1.0 - openness))
    first = outer * up * slope
    second = outer * value * openness
    tl.store(gradient_pointer + place, first.to(gradient_pointer.dtype.element_ty), mask=inside)
    tl.store(gradient_pointer + place + WIDTH, second.to(gradient_pointer.dtype.element_ty), mask=inside)
