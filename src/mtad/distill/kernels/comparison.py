"""Target and draft compared over whole rows of logits: loss, overlap and gradient, without a float32 copy of any.

A program has one row of both. It reads them once for their log-sum-exps and once or twice more for the sums and the
gradient, which takes the place of the draft's logits; what was just read is mostly still in the cache.
"""

import triton
import triton.language as tl


@triton.jit
def log_mass(pointer, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Log-sum-exp of one row of logits, float32."""
    columns = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -1.0e30, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        inside = start + columns < WIDTH
        values = tl.load(pointer + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, values)
        mass = mass * tl.exp(largest - larger) + tl.exp(values - larger)
        largest = larger
    top = tl.max(largest, 0)
    return top + tl.log(tl.sum(mass * tl.exp(largest - top), 0))


@triton.jit
def log_probs(pointer, columns, inside, mass):
    """Natural logs of one block's probabilities, float32; very low outside, where probabilities become 0."""
    return tl.load(pointer + columns, mask=inside, other=-1.0e30).to(tl.float32) - mass


@triton.jit
def compare_rows(
    target_pointer,
    shared_pointer,
    own_pointer,
    loss_pointer,
    overlap_pointer,
    target_stride,
    shared_stride,
    own_stride,
    factor,
    TARGET_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    LOSS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    HAS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its loss and overlap, and `factor` times its gradient in place of the draft's logits.

    `target` holds all of the target's logits, `shared` those of the tokens that the draft has; where the draft has all
    of them both are the same. `LOSS` is `kl`, `tv` or `acceptance`.
    """
    row = tl.program_id(0).to(tl.int64)
    target = target_pointer + row * target_stride
    shared = shared_pointer + row * shared_stride
    own = own_pointer + row * own_stride
    target_mass = log_mass(target, TARGET_WIDTH, BLOCK)
    own_mass = log_mass(own, WIDTH, BLOCK)
    share = 1.0
    if not IS_WHOLE:
        share = tl.exp(log_mass(shared, WIDTH, BLOCK) - target_mass)
    order = tl.arange(0, BLOCK)
    overlap = tl.zeros([BLOCK], tl.float32)
    other = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + order
        inside = columns < WIDTH
        log_p = log_probs(shared, columns, inside, target_mass)
        log_q = log_probs(own, columns, inside, own_mass)
        p = tl.exp(log_p)
        q = tl.exp(log_q)
        overlap += tl.minimum(p, q)
        if LOSS == "kl":
            other += p * (tl.maximum(log_p, -1.0e4) - log_q)
            if HAS_GRADIENT:
                gradient = (q * share - p) * factor
                tl.store(own + columns, gradient.to(own_pointer.dtype.element_ty), mask=inside)
        else:
            other += tl.where(q < p, q, 0.0)
    met = tl.sum(overlap, 0)
    rest = tl.sum(other, 0)
    # A NaN must stay one: minimum and comparisons would hide it.
    met += (target_mass - target_mass) + (own_mass - own_mass)
    tl.store(overlap_pointer + row, met)
    if LOSS == "kl":
        tl.store(loss_pointer + row, rest)
    else:
        scale = factor
        if LOSS == "tv":
            tl.store(loss_pointer + row, 1.0 - met)
        else:
            floor = tl.where(met < 1.0e-37, 1.0e-37, met)
            tl.store(loss_pointer + row, -tl.log(floor))
            scale = factor / floor
        if HAS_GRADIENT:
            for start in range(0, WIDTH, BLOCK):
                columns = start + order
                inside = columns < WIDTH
                p = tl.exp(log_probs(shared, columns, inside, target_mass))
                q = tl.exp(log_probs(own, columns, inside, own_mass))
                gradient = (q * rest - tl.where(q < p, q, 0.0)) * scale
                tl.store(own + columns, gradient.to(own_pointer.dtype.element_ty), mask=inside)
