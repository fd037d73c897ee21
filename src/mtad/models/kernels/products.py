"""Matrix products of a few tokens in Triton: every weight is read once, the inputs may be split over programs."""

import triton
import triton.language as tl

from mtad.models.kernels.layers import gated


@triton.jit(do_not_specialize=["num_tokens"])
def multiply_rows(
    input_pointer,
    weight_pointer,
    bias_pointer,
    output_pointer,
    num_tokens,
    split_stride,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TILES_PER_SPLIT: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDENS: tl.constexpr,
):
    """One split of the inputs of some outputs, `[splits, tokens, outputs]`; a bias is added to the first split.

    The grid is (tiles of outputs, splits). The inputs are `[tokens, inputs]`, weights `[outputs, inputs]`; INPUTS is a
    multiple of TILE_INPUTS.
    """
    split = tl.program_id(1)
    outputs = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    tokens = tl.arange(0, TILE_TOKENS)
    channels = tl.arange(0, TILE_INPUTS)
    is_output, is_token = outputs < OUTPUTS, tokens < num_tokens
    weights = weight_pointer + outputs.to(tl.int64)[:, None] * INPUTS + channels[None, :]
    inputs = input_pointer + tokens[None, :] * INPUTS + channels[:, None]
    first = split * (TILES_PER_SPLIT * TILE_INPUTS)
    last = tl.minimum(first + TILES_PER_SPLIT * TILE_INPUTS, INPUTS)
    total = tl.zeros([TILE_OUTPUTS, TILE_TOKENS], tl.float32)
    for start in range(first, last, TILE_INPUTS):
        weight = tl.load(weights + start, mask=is_output[:, None], other=0.0)
        states = tl.load(inputs + start, mask=is_token[None, :], other=0.0)
        if WIDENS:
            total += tl.dot(weight.to(tl.float32), states.to(tl.float32), input_precision="ieee")
        else:
            total = tl.dot(weight, states, total, input_precision="ieee")
    if HAS_BIAS:
        bias = tl.load(bias_pointer + outputs, mask=is_output & (split == 0), other=0.0)
        total += bias.to(tl.float32)[:, None]
    target = output_pointer + split.to(tl.int64) * split_stride + tokens[None, :] * OUTPUTS + outputs[:, None]
    tl.store(target, total.to(output_pointer.dtype.element_ty), mask=is_output[:, None] & is_token[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def multiply_and_gate(
    input_pointer,
    weight_pointer,
    output_pointer,
    num_tokens,
    INPUTS: tl.constexpr,
    NEURONS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_INPUTS: tl.constexpr,
    WIDENS: tl.constexpr,
):
    """`silu(gate) * up` of some neurons, `[tokens, neurons]`.

    The grid is (tiles of neurons,). The inputs are `[tokens, inputs]`, weights `[2 * neurons, inputs]`, gates first;
    INPUTS is a multiple of TILE_INPUTS.
    """
    neurons = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    tokens = tl.arange(0, TILE_TOKENS)
    channels = tl.arange(0, TILE_INPUTS)
    is_neuron, is_token = neurons < NEURONS, tokens < num_tokens
    gate_weights = weight_pointer + neurons.to(tl.int64)[:, None] * INPUTS + channels[None, :]
    up_weights = weight_pointer + (neurons + NEURONS).to(tl.int64)[:, None] * INPUTS + channels[None, :]
    inputs = input_pointer + tokens[None, :] * INPUTS + channels[:, None]
    gate = tl.zeros([TILE_OUTPUTS, TILE_TOKENS], tl.float32)
    up = tl.zeros([TILE_OUTPUTS, TILE_TOKENS], tl.float32)
    for start in range(0, INPUTS, TILE_INPUTS):
        gate_weight = tl.load(gate_weights + start, mask=is_neuron[:, None], other=0.0)
        up_weight = tl.load(up_weights + start, mask=is_neuron[:, None], other=0.0)
        states = tl.load(inputs + start, mask=is_token[None, :], other=0.0)
        if WIDENS:
            wide = states.to(tl.float32)
            gate += tl.dot(gate_weight.to(tl.float32), wide, input_precision="ieee")
            up += tl.dot(up_weight.to(tl.float32), wide, input_precision="ieee")
        else:
            gate = tl.dot(gate_weight, states, gate, input_precision="ieee")
            up = tl.dot(up_weight, states, up, input_precision="ieee")
    target = output_pointer + tokens[None, :] * NEURONS + neurons[:, None]
    kept = gated(gate, up, output_pointer.dtype.element_ty)
    tl.store(target, kept, mask=is_neuron[:, None] & is_token[None, :])
