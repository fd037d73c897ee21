"""Tree attention in Triton: split over the keys, lengths read on the device.

A program folds the queries of all heads that share a key head into one tile, so that every key is read once. The keys
that a tile can see end at a slot it works out itself, and the splits share what lies before that slot evenly: neither
the time nor the launch depends on how long the cache is. A second kernel joins the splits.
"""

import triton
import triton.language as tl


@triton.jit
def visible_end(prefix, bits, tree_start):
    """The slot behind the last one that any query of a tile sees; the arguments are `[rows]`, `[rows]` and a number."""
    nodes = tl.arange(0, 64).to(tl.int64)
    # The highest bit of any number is that of the largest one, and bit 63 makes a number negative.
    num_nodes = tl.sum(((tl.max(bits, 0) >> nodes) != 0).to(tl.int64), 0)
    num_nodes = tl.where(tl.min(bits, 0) < 0, 64, num_nodes)
    return tl.maximum(tl.max(prefix, 0), tl.where(num_nodes > 0, tree_start + num_nodes, 0))


@triton.jit
def visible(prefix, bits, tree_start, slots):
    """Whether each query of a tile sees each slot, `[rows, slots]`."""
    node = slots - tree_start
    is_node = (node >= 0) & (node < 64)
    shift = tl.where(is_node, node, 0)
    bit = (bits[:, None] >> shift[None, :]) & 1
    return (slots[None, :] < prefix[:, None]) | (is_node[None, :] & (bit != 0))


@triton.jit
def product(left, right, WIDENS: tl.constexpr):
    """The matrix product in float32; widened first for the interpreter, which cannot multiply bfloat16."""
    if WIDENS:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(left, right, input_precision="ieee")


@triton.jit
def scores_of(query, keys, scaling, SOFTCAP: tl.constexpr, WIDENS: tl.constexpr):
    """Scaled, softcapped scores in units of log 2, `[rows, slots]` float32."""
    scores = product(query, keys, WIDENS) * scaling
    if SOFTCAP > 0:
        # tanh(x) = 2 sigmoid(2x) - 1
        scores = SOFTCAP * (2 * tl.sigmoid(2 * scores / SOFTCAP) - 1)
    return scores * 1.4426950408889634


@triton.jit(do_not_specialize=["num_queries"])
def attend_splits(
    query_pointer,
    key_pointer,
    value_pointer,
    prefix_pointer,
    bits_pointer,
    tree_start_pointer,
    partial_pointer,
    scale_pointer,
    scaling,
    query_row_stride,
    query_head_stride,
    query_stride,
    key_row_stride,
    key_head_stride,
    key_slot_stride,
    value_row_stride,
    value_head_stride,
    value_slot_stride,
    num_queries,
    num_key_heads,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_HEAD_DIM: tl.constexpr,
    PADDED_VALUE_DIM: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_SLOTS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDENS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Attention of one tile of folded queries over one split of the visible slots.

    The grid is (rows * key heads * tiles, splits), for only its first side may exceed 65,535. Partial outputs are
    `[splits, rows, heads, queries, value_dim]` float32, each normalised by itself; their log2 masses `[splits, rows,
    heads, queries]` float32. Where a split sees nothing, its mass is -inf and its output is not written. A split that
    IS_WHOLE writes the attention itself, `[rows, queries, heads, value_dim]`, and no mass.
    """
    num_tiles = tl.cdiv(GROUPS * num_queries, TILE_ROWS)
    pair = tl.program_id(0) // num_tiles
    row = (pair // num_key_heads).to(tl.int64)
    key_head = (pair % num_key_heads).to(tl.int64)
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    folded = tl.program_id(0) % num_tiles * TILE_ROWS + tl.arange(0, TILE_ROWS)
    is_query = folded < GROUPS * num_queries
    head = key_head * GROUPS + folded // num_queries
    place = folded % num_queries
    prefix = tl.load(prefix_pointer + row * num_queries + place, mask=is_query, other=0)
    bits = tl.load(bits_pointer + row * num_queries + place, mask=is_query, other=0)
    tree_start = tl.load(tree_start_pointer + row)
    end = visible_end(prefix, bits, tree_start)
    per_split = tl.cdiv(tl.cdiv(end, TILE_SLOTS), num_splits) * TILE_SLOTS
    first = split * per_split
    last = tl.minimum(first + per_split, end)

    channels = tl.arange(0, PADDED_HEAD_DIM)
    value_channels = tl.arange(0, PADDED_VALUE_DIM)
    query_offsets = row * query_row_stride + head * query_head_stride + place * query_stride
    is_channel, is_value_channel = channels < HEAD_DIM, value_channels < VALUE_DIM
    query = tl.load(
        query_pointer + query_offsets[:, None] + channels[None, :],
        mask=is_query[:, None] & is_channel[None, :],
        other=0.0,
    )
    keys_start = key_pointer + row * key_row_stride + key_head * key_head_stride
    values_start = value_pointer + row * value_row_stride + key_head * value_head_stride
    best = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([TILE_ROWS], tl.float32)
    output = tl.zeros([TILE_ROWS, PADDED_VALUE_DIM], tl.float32)
    for start in range(first, last, TILE_SLOTS):
        slots = start + tl.arange(0, TILE_SLOTS)
        is_slot = slots < last
        keys = tl.load(
            keys_start + slots[None, :] * key_slot_stride + channels[:, None],
            mask=is_slot[None, :] & is_channel[:, None],
            other=0.0,
        )
        scores = scores_of(query, keys, scaling, SOFTCAP, WIDENS)
        is_visible = visible(prefix, bits, tree_start, slots) & is_slot[None, :]
        scores = tl.where(is_visible, scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        # A query that has seen nothing yet has no best; 0 keeps -inf - -inf out.
        shift = tl.where(new_best == float("-inf"), 0.0, new_best)
        weights = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(best - shift)
        mass = mass * fade + tl.sum(weights, 1)
        values = tl.load(
            values_start + slots[:, None] * value_slot_stride + value_channels[None, :],
            mask=is_slot[:, None] & is_value_channel[None, :],
            other=0.0,
        )
        output = output * fade[:, None] + product(weights.to(values.dtype), values, WIDENS)
        best = new_best

    has_mass = mass > 0
    output = output / tl.where(has_mass, mass, 1.0)[:, None]
    is_written = is_query
    if IS_WHOLE:
        place_out = (row * num_queries + place) * (num_key_heads * GROUPS) + head
    else:
        num_rows = tl.num_programs(0) // (num_tiles * num_key_heads)
        place_out = ((split * num_rows + row) * num_key_heads * GROUPS + head) * num_queries + place
        # Clamped, so that the logarithm of nothing is not taken where it is thrown away.
        log_mass = tl.where(has_mass, best + tl.log2(tl.maximum(mass, 1e-37)), float("-inf"))
        tl.store(scale_pointer + place_out, log_mass, mask=is_query)
        is_written = is_query & has_mass
    tl.store(
        partial_pointer + place_out[:, None] * VALUE_DIM + value_channels[None, :],
        output.to(partial_pointer.dtype.element_ty),
        mask=is_written[:, None] & is_value_channel[None, :],
    )


@triton.jit(do_not_specialize=["num_queries", "num_places"])
def join_splits(
    partial_pointer,
    scale_pointer,
    output_pointer,
    num_queries,
    num_heads,
    num_places,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
):
    """Weigh the splits of one query of one head by their masses.

    The grid is (rows * heads * queries,); the output is `[rows, queries, heads, value_dim]`.
    """
    place = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, PADDED_SPLITS)
    channels = tl.arange(0, PADDED_VALUE_DIM)
    is_split, is_channel = splits < NUM_SPLITS, channels < VALUE_DIM
    log_mass = tl.load(scale_pointer + splits * num_places + place, mask=is_split, other=float("-inf"))
    weights = tl.exp2(log_mass - tl.max(log_mass, 0))
    weights = weights / tl.sum(weights, 0)
    partials = tl.load(
        partial_pointer + (splits[:, None] * num_places + place) * VALUE_DIM + channels[None, :],
        mask=(log_mass > float("-inf"))[:, None] & is_channel[None, :],
        other=0.0,
    )
    output = tl.sum(partials * weights[:, None], 0)
    query = place % num_queries
    head = place // num_queries % num_heads
    row = place // (num_queries * num_heads)
    target = ((row * num_queries + query) * num_heads + head) * VALUE_DIM
    tl.store(output_pointer + target + channels, output.to(output_pointer.dtype.element_ty), mask=is_channel)
