"""What a caller gets back: pieces while decoding, a result at the end."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Provenance = Literal["drafted", "target"]
FinishReason = Literal["stop", "length", "dead_end", "cancelled"]
TopLogProbs = tuple[tuple[int, float], ...]
"""Token ids with natural log-probabilities, the most likely first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepExplanation:
    """What one iteration drafted for one answer and why it kept what it kept: plain data, all lists by node.

    Nodes that only carry a beam which has ended are left out.

    Attributes:
        rule: Name of the acceptance rule.
        threshold: tau of the answer; rules without one ignore it.
        pending_token: The committed token that the tree hangs from.
        tokens: Drafted token of every node that is there.
        parents: Node above, -1 for the pending token.
        depths: 1 for children of the pending token.
        joint_draft_log_probs: Natural log of the draft's joint probability of the path to the node.
        joint_target_log_probs: The target's, as the rule saw it.
        joint_log_ratios: The difference that a joint rule holds against log tau: to the winner's prefix of the same
            length for the rule `joint`, to the node's own path for the others; -inf where the target excludes a path.
        winner_path: Nodes of the draft's winner, from the top, which the rule `joint` measures every path against.
        kept_path: Nodes that were kept, from the top.
        next_token: The token that the target added behind them.
    """

    rule: str
    threshold: float
    pending_token: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    joint_draft_log_probs: tuple[float, ...]
    joint_target_log_probs: tuple[float, ...]
    joint_log_ratios: tuple[float, ...]
    winner_path: tuple[int, ...]
    kept_path: tuple[int, ...]
    next_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens that one iteration added to one answer.

    Attributes:
        row: Index of the prompt in the call, or the ticket of a session.
        text: Text that became final with these tokens; may be empty while a character is incomplete.
        token_ids: The new token ids.
        provenance: Where each token came from: the draft, or the target itself.
        log_probs: Natural log-probability of each token under the unwarped temperature-1 target.
        segments: `text` cut at the borders of provenance, as (text, provenance).
        top_log_probs: For each token, the best tokens at its place under the unwarped temperature-1 target, as many as
            `top_logprobs` asked for; empty where none were.
        finish_reason: Set on the last piece of the row.
        result: The whole result, set on the last piece of the row.
        step: What was drafted and why it was kept, where a session was asked to explain.
    """

    row: int
    text: str
    token_ids: tuple[int, ...]
    provenance: tuple[Provenance, ...]
    log_probs: tuple[float, ...]
    segments: tuple[tuple[str, Provenance], ...]
    top_log_probs: tuple[TopLogProbs, ...] = ()
    finish_reason: FinishReason | None = None
    result: "GenerationResult | None" = None
    step: StepExplanation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingStats:
    """What decoding one answer cost and how likely the answer is.

    Attributes:
        num_prompt_tokens: Tokens of the prompt.
        num_tokens: Emitted tokens.
        target_calls: Decode calls of the target for this row, prefill not counted.
        tokens_per_call: `num_tokens / target_calls`, the literature's block efficiency.
        acceptance_by_depth: Share of iterations that kept at least 1, 2, ... drafted tokens.
        refused_share: Share of the kept drafted tokens that token-by-token rejection would have refused, in
            expectation: the mean of 1 - min(1, p / q); None where nothing drafted was kept.
        perplexity: exp(-mean log p) of the emitted tokens under the unwarped temperature-1 target.
        prefill_s: Wall seconds of the batch's prefill; where rows come and go, from the row's admission until its
            prompt is cached, the others' iterations in between included.
        decode_s: Wall seconds from the end of prefill to the row's last token.
        draft_s: Wall seconds of decoding spent drafting, whole batch; where rows come and go, while the row was there.
        verify_s: Wall seconds of decoding spent in the target's forward pass, whole batch.
        constraint_s: Wall seconds of decoding spent on constraints, those of the draft included, whole batch.
        cache_bytes: Memory of the keys and values of all models, whole batch.
        tokens_per_s: `num_tokens / decode_s`.
        num_reused_prompt_tokens: Tokens of the prompt whose keys were copied from another row instead of computed.
        shortened_calls: Target calls for which the guard shortened the draft.
        undrafted_calls: Target calls for which the guard left the draft out, to measure or because it did not pay.
    """

    num_prompt_tokens: int
    num_tokens: int
    target_calls: int
    tokens_per_call: float
    acceptance_by_depth: tuple[float, ...]
    refused_share: float | None = None
    perplexity: float
    prefill_s: float
    decode_s: float
    draft_s: float
    verify_s: float
    constraint_s: float = 0.0
    cache_bytes: int = 0
    tokens_per_s: float
    num_reused_prompt_tokens: int = 0
    shortened_calls: int = 0
    undrafted_calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """One answer with the origin and log-probability of every token.

    Attributes:
        text: Decoded answer, cut before a stop string, special tokens removed.
        token_ids: Emitted token ids, the EOS token included when one ended the answer.
        provenance: Per token, whether the draft proposed it or the target drew it.
        log_probs: Per token, natural log-probability under the unwarped temperature-1 target.
        joint_log_ratios: Per iteration, log P - log Q of the kept drafted path (0 when nothing was kept).
        accepted_lengths: Per iteration, drafted tokens kept.
        finish_reason: `stop` (EOS or stop string), `length`, `dead_end` (no token may follow under the constraints), or
            `cancelled`.
        method: Name of the decoding method.
        top_log_probs: As in `Piece`.
        config: Every resolved setting of the run.
        stats: Counts, times and likelihood.
    """

    text: str
    token_ids: tuple[int, ...]
    provenance: tuple[Provenance, ...]
    log_probs: tuple[float, ...]
    joint_log_ratios: tuple[float, ...]
    accepted_lengths: tuple[int, ...]
    finish_reason: FinishReason
    method: str
    stats: DecodingStats
    top_log_probs: tuple[TopLogProbs, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, ready for JSON."""
        return asdict(self)
