"""One token a row by Gumbel's trick, with noise that is a function of (seed, text, place, token)."""

import triton
import triton.language as tl


@triton.jit
def best_of_quarter(pointer, columns, bits, inverse_temperature, WIDTH: tl.constexpr):
    """Noisy scores of some columns, float32; -inf outside.

    The score is logit / T - log(e) with e exponential, which is -log of a uniform number; near 0 its series is used,
    since the uniform number would round to 1.
    """
    inside = columns < WIDTH
    logits = tl.load(pointer + columns, mask=inside, other=-float("inf")).to(tl.float32)
    # 31 bits: half a step from both ends of (0, 1).
    rest = ((bits >> 1).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    rest = tl.minimum(rest, 0.9999999)
    waited = tl.where(rest < 0.001, rest * (1.0 + 0.5 * rest), -tl.log(1.0 - rest))
    return tl.where(inside, logits * inverse_temperature - tl.log(waited), -float("inf"))


@triton.jit
def draw_rows(
    logits_pointer,
    drawn_pointer,
    seed_pointer,
    inverse_pointer,
    texts_pointer,
    place_pointer,
    row_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: the index of its largest noisy score.

    Seed, one over the temperature and the place in the texts lie on the device, since a captured launch keeps its
    numbers. Four blocks of columns share a call of Philox.
    """
    row = tl.program_id(0).to(tl.int64)
    seed = tl.load(seed_pointer)
    inverse_temperature = tl.load(inverse_pointer)
    order = tl.arange(0, BLOCK)
    text = tl.load(texts_pointer + row).to(tl.int32)
    place = tl.load(place_pointer).to(tl.int32)
    nothing = order * 0
    pointer = logits_pointer + row * row_stride
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    choice = tl.zeros([BLOCK], tl.int32)
    for start in range(0, WIDTH, 4 * BLOCK):
        first, second, third, fourth = tl.philox(seed, start + order, nothing + text, nothing + place, nothing)
        columns = start + order
        score = best_of_quarter(pointer, columns, first, inverse_temperature, WIDTH)
        choice = tl.where(score > best, columns, choice)
        best = tl.maximum(best, score)
        score = best_of_quarter(pointer, columns + BLOCK, second, inverse_temperature, WIDTH)
        choice = tl.where(score > best, columns + BLOCK, choice)
        best = tl.maximum(best, score)
        score = best_of_quarter(pointer, columns + 2 * BLOCK, third, inverse_temperature, WIDTH)
        choice = tl.where(score > best, columns + 2 * BLOCK, choice)
        best = tl.maximum(best, score)
        score = best_of_quarter(pointer, columns + 3 * BLOCK, fourth, inverse_temperature, WIDTH)
        choice = tl.where(score > best, columns + 3 * BLOCK, choice)
        best = tl.maximum(best, score)
    top = tl.max(best, 0)
    # The lowest index among equals, whatever the order of the threads.
    winner = tl.min(tl.where(best == top, choice, WIDTH), 0)
    tl.store(drawn_pointer + row, tl.minimum(winner, WIDTH - 1).to(tl.int64))
