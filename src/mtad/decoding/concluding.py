"""The end of an iteration: what the target's logits decide, what that comes to, and how the host reads it."""

import torch
from torch import Tensor

from mtad.decoding.outcome import RowOutcome, best_log_probs, refusal_probabilities, unwarped_log_probs
from mtad.sampling import warp_logits
from mtad.structures.acceptance import Acceptance
from mtad.structures.between_calls import between_calls
from mtad.structures.constants import first_numbers
from mtad.structures.results import TopLogProbs
from mtad.structures.rows import RowControls
from mtad.structures.tree import TokenTree
from mtad.verification import Verifier


@between_calls
def judge(verifier: Verifier, tree: TokenTree, logits: Tensor, rows: RowControls) -> tuple[Tensor, Acceptance, Tensor]:
    """The target's warped log-probabilities, what the rule keeps, and `refusal_probabilities`."""
    target_log_probs = warp_logits(logits, rows)
    acceptance = verifier.accept(tree, target_log_probs, rows)
    return target_log_probs, acceptance, refusal_probabilities(tree, target_log_probs, acceptance)


@between_calls
def conclude(
    drafted: Tensor,
    acceptance: Acceptance,
    scored: tuple[Tensor, Tensor | None, Tensor],
    before: tuple[Tensor, Tensor],
    lengths: Tensor,
    active: Tensor,
    num_top: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What an iteration comes to.

    Args:
        drafted: Tokens of all nodes, `[batch, nodes]` int64.
        acceptance: What was kept of them.
        scored: The target's logits `[batch, 1 + nodes, vocab]`, whether nothing may follow a place
            `[batch, 1 + nodes]` bool, and `refusal_probabilities`.
        before: Pending tokens and those before them, `[batch]` int64 each.
        lengths: Cached tokens of each row now, `[batch]` int64.
        active: `[batch]` bool.
        num_top: Best tokens beside every emitted one.

    Returns:
        Emitted tokens `[batch, gamma + 1]`, the new pending tokens and those before them `[batch]`, and tokens,
        log-probabilities and lengths for the host, `[batch, columns]` float64; `read_outcome` takes them apart. There a
        token where nothing was allowed to follow is -1.
    """
    (logits, is_dead_end, refusals), (pending, previous) = scored, before
    emitted = tokens = acceptance.emitted_tokens(drafted)
    end = acceptance.num_accepted.unsqueeze(1)
    last_but_one = torch.cat([pending.unsqueeze(1), tokens], 1).gather(1, end).squeeze(1)
    batch = first_numbers(len(tokens), tokens.device).unsqueeze(1)
    # Behind the kept path this says the pending token, which is as good as any.
    scored_after = torch.nn.functional.pad(acceptance.path_nodes + 1, (1, 0))
    after = logits[batch, scored_after]
    log_probs = unwarped_log_probs(after, tokens)
    if is_dead_end is not None:
        tokens = tokens.masked_fill(is_dead_end.gather(1, scored_after), -1)
    columns = [tokens, log_probs, end, acceptance.joint_log_ratio.unsqueeze(1), lengths.unsqueeze(1), refusals]
    if num_top:
        columns.append(best_log_probs(after, num_top))
    packed = torch.cat([column.double() for column in columns], 1)
    new_pending = torch.where(active, acceptance.next_tokens, pending)
    return emitted, new_pending, torch.where(active, last_but_one, previous), packed


def read_outcome(row: list[float], width: int, num_top: int, guarded_depth: int | None) -> RowOutcome:
    """What `conclude` packed for one row, up to a dead end."""
    count = int(row[2 * width]) + 1
    tokens = [int(token) for token in row[:count]]
    is_dead_end = -1 in tokens
    if is_dead_end:
        tokens = tokens[: tokens.index(-1)]
    num_drafted = min(count - 1, len(tokens))
    return RowOutcome(
        tokens=tokens,
        num_drafted=num_drafted,
        log_probs=row[width : width + len(tokens)],
        joint_log_ratio=row[2 * width + 1],
        target_calls=1,
        refusals=row[2 * width + 3 :][:num_drafted],
        is_dead_end=is_dead_end,
        guarded_depth=guarded_depth,
        top_log_probs=_top_log_probs(row[3 * width + 2 :], len(tokens), num_top) if num_top else [],
    )


def _top_log_probs(columns: list[float], num_tokens: int, num_top: int) -> list[TopLogProbs]:
    """What `best_log_probs` packed, for the first tokens."""
    places = [columns[place * 2 * num_top :][: 2 * num_top] for place in range(num_tokens)]
    return [tuple(zip(map(int, place[:num_top]), place[num_top:], strict=True)) for place in places]
