"""Host-side bookkeeping of one answer: cutting, text, provenance and statistics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtad.decoding.outcome import PhaseTimes, RowOutcome
from mtad.decoding.text import Decode, TextStream
from mtad.structures.results import DecodingStats, FinishReason, GenerationResult, Piece, Provenance, TopLogProbs


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """What ends an answer: `max_new_tokens`, any of `eos_token_ids`, any text in `stop`, or `ends_after`.

    `ends_after` is asked after every token, with the answer's token ids so far.
    """

    max_new_tokens: int
    eos_token_ids: frozenset[int]
    stop: tuple[str, ...] = ()
    ends_after: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What all answers of a batch share in their results."""

    method: str
    config: dict[str, Any] = field(default_factory=dict)
    gamma: int = 0


class AnswerBuilder:
    """Collects the outcomes of one row and cuts the answer where it ends.

    Args:
        row: Index of the prompt in the call.
        num_prompt_tokens: Length of the prompt.
        limits: What ends the answer.
        decode: Turns token ids into text.
        num_top: Best tokens to report beside every token.
    """

    def __init__(
        self, row: int, num_prompt_tokens: int, limits: AnswerLimits, decode: Decode, *, num_top: int = 0
    ) -> None:
        self.row = row
        self.finish_reason: FinishReason | None = None
        self._num_prompt_tokens = num_prompt_tokens
        self._limits = limits
        self._stream = TextStream(decode, limits.stop)
        self._token_ids: list[int] = []
        self._provenance: list[Provenance] = []
        self._log_probs: list[float] = []
        self._num_top = num_top
        self._top_log_probs: list[TopLogProbs] = []
        self._ratios: list[float] = []
        self._accepted: list[int] = []
        self._refusals: list[float] = []
        self._target_calls = 0
        self._guarded: list[int] = []

    @property
    def is_finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    def take(self, outcome: RowOutcome) -> Piece:
        """Add one iteration's tokens, up to where the answer ends."""
        start = len(self._token_ids)
        segments: list[tuple[str, Provenance]] = []
        for index, (token, log_prob) in enumerate(zip(outcome.tokens, outcome.log_probs, strict=True)):
            origin: Provenance = "drafted" if outcome.is_drafted(index) else "target"
            self._add_token(token, origin, log_prob, segments)
            if self.is_finished:
                break
        if outcome.is_dead_end and not self.is_finished:
            self.finish_reason = "dead_end"
            self._flush(segments)
        num_new = len(self._token_ids) - start
        if self._num_top:
            self._top_log_probs += [best[: self._num_top] for best in outcome.top_log_probs[:num_new]]
        self._target_calls += outcome.target_calls
        if outcome.guarded_depth is not None:
            self._guarded.append(outcome.guarded_depth)
        self._accepted.append(min(outcome.num_drafted, num_new) if outcome.from_draft is None else outcome.num_drafted)
        self._refusals += outcome.refusals[:num_new]
        self._ratios.append(outcome.joint_log_ratio)
        return self._piece(start, segments)

    def cancel(self) -> Piece:
        """End the answer where it stands."""
        self.finish_reason = "cancelled"
        segments: list[tuple[str, Provenance]] = []
        self._flush(segments)
        return self._piece(len(self._token_ids), segments)

    def result(
        self,
        facts: RunFacts,
        *,
        prefill_s: float,
        decode_s: float,
        times: PhaseTimes,
        cache_bytes: int = 0,
        num_reused: int = 0,
    ) -> GenerationResult:
        """The finished answer."""
        count = len(self._token_ids)
        steps = len(self._accepted)
        by_depth = [sum(kept > depth for kept in self._accepted) / max(steps, 1) for depth in range(facts.gamma)]
        stats = DecodingStats(
            num_prompt_tokens=self._num_prompt_tokens,
            num_tokens=count,
            target_calls=self._target_calls,
            tokens_per_call=count / max(self._target_calls, 1),
            acceptance_by_depth=tuple(by_depth),
            refused_share=sum(self._refusals) / len(self._refusals) if self._refusals else None,
            perplexity=math.exp(-sum(self._log_probs) / count) if count else math.nan,
            prefill_s=prefill_s,
            decode_s=decode_s,
            draft_s=times.draft_s,
            verify_s=times.verify_s,
            constraint_s=times.constraint_s,
            cache_bytes=cache_bytes,
            tokens_per_s=count / decode_s if decode_s > 0 else math.nan,
            num_reused_prompt_tokens=num_reused,
            shortened_calls=sum(0 < depth < facts.gamma for depth in self._guarded),
            undrafted_calls=self._guarded.count(0),
        )
        return GenerationResult(
            text=self._stream.text,
            token_ids=tuple(self._token_ids),
            provenance=tuple(self._provenance),
            log_probs=tuple(self._log_probs),
            joint_log_ratios=tuple(self._ratios),
            accepted_lengths=tuple(self._accepted),
            finish_reason=self.finish_reason or "cancelled",
            method=facts.method,
            top_log_probs=tuple(self._top_log_probs),
            config=facts.config,
            stats=stats,
        )

    def _add_token(
        self, token: int, origin: Provenance, log_prob: float, segments: list[tuple[str, Provenance]]
    ) -> None:
        self._token_ids.append(token)
        self._provenance.append(origin)
        self._log_probs.append(log_prob)
        is_eos = token in self._limits.eos_token_ids
        text = "" if is_eos else self._stream.push(token)
        _append_segment(segments, text, origin)
        ends_after = self._limits.ends_after
        if is_eos or self._stream.is_stopped or (ends_after is not None and ends_after(self._token_ids)):
            self.finish_reason = "stop"
        elif len(self._token_ids) >= self._limits.max_new_tokens:
            self.finish_reason = "length"
        if self.is_finished:
            self._flush(segments)

    def _flush(self, segments: list[tuple[str, Provenance]]) -> None:
        _append_segment(segments, self._stream.finish(), self._provenance[-1] if self._provenance else "target")

    def _piece(self, start: int, segments: Sequence[tuple[str, Provenance]]) -> Piece:
        return Piece(
            row=self.row,
            text="".join(text for text, _ in segments),
            token_ids=tuple(self._token_ids[start:]),
            provenance=tuple(self._provenance[start:]),
            log_probs=tuple(self._log_probs[start:]),
            segments=tuple(segments),
            top_log_probs=tuple(self._top_log_probs[start:]),
            finish_reason=self.finish_reason,
        )


def _append_segment(segments: list[tuple[str, Provenance]], text: str, origin: Provenance) -> None:
    if not text:
        return
    if segments and segments[-1][1] == origin:
        segments[-1] = (segments[-1][0] + text, origin)
    else:
        segments.append((text, origin))
