"""What lies between the matrix products of a Llama-like layer, in Triton; it rounds where the modules do."""

import triton
import triton.language as tl


@triton.jit
def root_mean_square_norm(values, weights, epsilon, WIDTH: tl.constexpr):
    """One token's channels over their root mean square, times the weights, `[channels]`; those behind WIDTH are 0."""
    wide = values.to(tl.float32)
    mean = tl.sum(wide * wide, 0) / WIDTH
    rounded = (wide * tl.rsqrt(mean + epsilon)).to(weights.dtype)
    return (rounded.to(tl.float32) * weights.to(tl.float32)).to(weights.dtype)


@triton.jit
def joined(pointer, offsets, mask, split_stride, NUM_SPLITS: tl.constexpr):
    """The sum of a product's splits, float32."""
    total = tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    for split in tl.static_range(1, NUM_SPLITS):
        total += tl.load(pointer + split * split_stride + offsets, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def begin_tokens(
    token_pointer,
    position_pointer,
    embedding_pointer,
    frequency_pointer,
    weight_pointer,
    residual_pointer,
    normed_pointer,
    cosine_pointer,
    sine_pointer,
    rotary_scaling,
    epsilon,
    HIDDEN: tl.constexpr,
    PADDED_HIDDEN: tl.constexpr,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
):
    """Embed a token, normalise it for the first layer, and turn its position into cosines and sines.

    The grid is (tokens,). Residual and normed rows are `[tokens, hidden]`, cosines and sines `[tokens, head_dim / 2]`.
    """
    place = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, PADDED_HIDDEN)
    is_channel = channels < HIDDEN
    token = tl.load(token_pointer + place)
    values = tl.load(embedding_pointer + token * HIDDEN + channels, mask=is_channel, other=0.0)
    weights = tl.load(weight_pointer + channels, mask=is_channel, other=0.0)
    normed = root_mean_square_norm(values, weights, epsilon, HIDDEN)
    tl.store(residual_pointer + place * HIDDEN + channels, values, mask=is_channel)
    tl.store(normed_pointer + place * HIDDEN + channels, normed, mask=is_channel)

    half = tl.arange(0, PADDED_HALF)
    is_half = half < HALF
    position = tl.load(position_pointer + place).to(tl.float32)
    angles = position * tl.load(frequency_pointer + half, mask=is_half, other=0.0)
    cosines = (tl.cos(angles) * rotary_scaling).to(cosine_pointer.dtype.element_ty)
    sines = (tl.sin(angles) * rotary_scaling).to(sine_pointer.dtype.element_ty)
    tl.store(cosine_pointer + place * HALF + half, cosines, mask=is_half)
    tl.store(sine_pointer + place * HALF + half, sines, mask=is_half)


@triton.jit(do_not_specialize=["num_queries", "num_kept"])
def add_and_normalise(
    residual_pointer,
    update_pointer,
    weight_pointer,
    normed_pointer,
    epsilon,
    num_queries,
    num_kept,
    split_stride,
    HIDDEN: tl.constexpr,
    PADDED_HIDDEN: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """Add a product to the residual stream, in place, and normalise the sum of the last tokens of every row.

    The grid is (rows * kept,). The residual is `[rows, queries, hidden]`, the update `[splits, rows, queries, hidden]`,
    normed rows are `[rows, kept, hidden]`.
    """
    place = tl.program_id(0).to(tl.int64)
    source = place // num_kept * num_queries + (num_queries - num_kept) + place % num_kept
    channels = tl.arange(0, PADDED_HIDDEN)
    is_channel = channels < HIDDEN
    residual = tl.load(residual_pointer + source * HIDDEN + channels, mask=is_channel, other=0.0)
    update = joined(update_pointer, source * HIDDEN + channels, is_channel, split_stride, NUM_SPLITS).to(residual.dtype)
    weights = tl.load(weight_pointer + channels, mask=is_channel, other=0.0)
    total = (residual.to(tl.float32) + update.to(tl.float32)).to(residual_pointer.dtype.element_ty)
    normed = root_mean_square_norm(total, weights, epsilon, HIDDEN)
    tl.store(residual_pointer + source * HIDDEN + channels, total, mask=is_channel)
    tl.store(normed_pointer + place * HIDDEN + channels, normed, mask=is_channel)


@triton.jit
def head_norm(first, second, first_weights, second_weights, epsilon, HEAD_DIM: tl.constexpr):
    """Both halves of some heads over their root mean square, times float32 weights, each `[heads, head_dim / 2]`."""
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    mean = (tl.sum(wide_first * wide_first, 1) + tl.sum(wide_second * wide_second, 1)) / HEAD_DIM
    factor = tl.rsqrt(mean + epsilon)[:, None]
    rounded_first = (wide_first * factor).to(first.dtype).to(tl.float32)
    rounded_second = (wide_second * factor).to(first.dtype).to(tl.float32)
    return (rounded_first * first_weights).to(first.dtype), (rounded_second * second_weights).to(first.dtype)


@triton.jit(do_not_specialize=["num_queries"])
def rotate_and_store(
    joint_pointer,
    cosine_pointer,
    sine_pointer,
    query_norm_pointer,
    key_norm_pointer,
    slot_pointer,
    query_pointer,
    key_pointer,
    value_pointer,
    epsilon,
    num_queries,
    split_stride,
    row_stride,
    head_stride,
    slot_stride,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """Split a joint product: rotated queries to a tensor, rotated keys and plain values to the cache.

    The grid is (rows * queries, tiles of heads). The product is `[splits, rows, queries, heads + 2 * key_heads,
    head_dim]`, the queries are `[rows, queries, heads, head_dim]`; keys and values `[rows, key_heads, slots, head_dim]`
    have the same strides, 1 in the last dimension.
    """
    place = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    half = tl.arange(0, PADDED_HALF)
    is_half = (half < HALF)[None, :]
    is_query = (heads < HEADS)[:, None] & is_half
    is_key = ((heads >= HEADS) & (heads < HEADS + KEY_HEADS))[:, None] & is_half
    is_value = ((heads >= HEADS + KEY_HEADS) & (heads < HEADS + 2 * KEY_HEADS))[:, None] & is_half
    is_there = is_query | is_key | is_value
    source = place * ((HEADS + 2 * KEY_HEADS) * HEAD_DIM) + heads[:, None] * HEAD_DIM + half[None, :]
    kind = query_pointer.dtype.element_ty
    first = joined(joint_pointer, source, is_there, split_stride, NUM_SPLITS).to(kind)
    second = joined(joint_pointer, source + HALF, is_there, split_stride, NUM_SPLITS).to(kind)

    turned_first, turned_second = first, second
    if HAS_NORMS:
        weights = query_norm_pointer + heads[:, None] * 0 + half[None, :]
        key_weights = key_norm_pointer + heads[:, None] * 0 + half[None, :]
        # One of both is there for a head, the other one is 0.
        first_weights = tl.load(weights, mask=is_query, other=0.0).to(tl.float32)
        first_weights += tl.load(key_weights, mask=is_key, other=0.0).to(tl.float32)
        second_weights = tl.load(weights + HALF, mask=is_query, other=0.0).to(tl.float32)
        second_weights += tl.load(key_weights + HALF, mask=is_key, other=0.0).to(tl.float32)
        turned_first, turned_second = head_norm(first, second, first_weights, second_weights, epsilon, HEAD_DIM)
    cosines = tl.load(cosine_pointer + place * HALF + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
    sines = tl.load(sine_pointer + place * HALF + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
    wide_first, wide_second = turned_first.to(tl.float32), turned_second.to(tl.float32)
    rotated_first = (wide_first * cosines).to(kind).to(tl.float32) - (wide_second * sines).to(kind).to(tl.float32)
    rotated_second = (wide_second * cosines).to(kind).to(tl.float32) + (wide_first * sines).to(kind).to(tl.float32)

    queries = query_pointer + place * (HEADS * HEAD_DIM) + heads[:, None] * HEAD_DIM + half[None, :]
    tl.store(queries, rotated_first.to(kind), mask=is_query)
    tl.store(queries + HALF, rotated_second.to(kind), mask=is_query)
    slot = tl.load(slot_pointer + place)
    token = place // num_queries * row_stride + slot * slot_stride
    keys = key_pointer + token + (heads[:, None] - HEADS).to(tl.int64) * head_stride + half[None, :]
    tl.store(keys, rotated_first.to(kind), mask=is_key)
    tl.store(keys + HALF, rotated_second.to(kind), mask=is_key)
    values = value_pointer + token + (heads[:, None] - HEADS - KEY_HEADS).to(tl.int64) * head_stride + half[None, :]
    tl.store(values, first, mask=is_value)
    tl.store(values + HALF, second, mask=is_value)


@triton.jit
def gated(gate, up, kind: tl.constexpr):
    """`silu(gate) * up` of float32 numbers, each rounded to `kind` before and after."""
    gate = gate.to(kind).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    return (opened * up.to(kind).to(tl.float32)).to(kind)


@triton.jit
def gate_neurons(
    joint_pointer,
    output_pointer,
    split_stride,
    NEURONS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """`silu(gate) * up` of a joint product.

    The grid is (tokens, tiles of neurons). The product is `[splits, tokens, 2 * neurons]`, gates first, the output
    `[tokens, neurons]`.
    """
    place = tl.program_id(0).to(tl.int64)
    neurons = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_neuron = neurons < NEURONS
    source = place * (2 * NEURONS) + neurons
    gate = joined(joint_pointer, source, is_neuron, split_stride, NUM_SPLITS)
    up = joined(joint_pointer, source + NEURONS, is_neuron, split_stride, NUM_SPLITS)
    kept = gated(gate, up, output_pointer.dtype.element_ty)
    tl.store(output_pointer + place * NEURONS + neurons, kept, mask=is_neuron)


@triton.jit(do_not_specialize=["num_rows"])
def move_slots(
    cache_pointer,
    source_pointer,
    target_pointer,
    part_stride,
    row_stride,
    head_stride,
    slot_stride,
    num_rows,
    num_heads,
    COUNT: tl.constexpr,
    PADDED_COUNT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
):
    """Copy slots within every row of the keys and values of all layers.

    The grid is (parts * rows * heads, tiles of channels); the cache is `[parts, rows, heads, slots, head_dim]`, sources
    and targets are `[rows, count]`. A program owns its channels and is one warp, which reads before it writes.
    """
    place = tl.program_id(0).to(tl.int64)
    head = place % num_heads
    row = place // num_heads % num_rows
    part = place // num_heads // num_rows
    order = tl.arange(0, PADDED_COUNT)
    is_moved = order < COUNT
    sources = tl.load(source_pointer + row * COUNT + order, mask=is_moved, other=0)
    targets = tl.load(target_pointer + row * COUNT + order, mask=is_moved, other=0)
    channels = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = is_moved[:, None] & (channels < HEAD_DIM)[None, :]
    start = cache_pointer + part * part_stride + row * row_stride + head * head_stride
    contents = tl.load(start + sources[:, None] * slot_stride + channels[None, :], mask=inside, other=0.0)
    tl.debug_barrier()
    tl.store(start + targets[:, None] * slot_stride + channels[None, :], contents, mask=inside)
