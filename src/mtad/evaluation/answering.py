"""Items become answers: turn by turn, with what each cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mtad.api import Engine, Prompt, PromptFormat
from mtad.config import GenerationOptions
from mtad.evaluation.items import Item
from mtad.structures import GenerationResult


@dataclass(slots=True)
class _Answer:
    """What the turns of one item have given so far."""

    outputs: list[str] = field(default_factory=list)
    segments: list[list[tuple[str, str]]] = field(default_factory=list)
    results: list[GenerationResult] = field(default_factory=list)


def answer_items(
    engine: Engine, items: Sequence[Item], options: GenerationOptions, style: PromptFormat
) -> list[dict[str, Any]]:
    """The answers to items of one batch, ready for JSON.

    Args:
        engine: The models.
        items: Of one task; those with more turns are gone on with.
        options: Settings of all of them.
        style: How their text is wrapped.

    Returns:
        For every item its outputs, their segments by origin, and the figures of `AnswerFigures` summed over turns.
    """
    answers = [_Answer() for _ in items]
    batch_decode_s = 0.0
    for turn in range(max(len(item.turns) for item in items)):
        rows = [row for row, item in enumerate(items) if turn < len(item.turns)]
        prompts = [build_prompt(engine, items[row], answers[row].outputs) for row in rows]
        segments: list[list[tuple[str, str]]] = [[] for _ in rows]
        decode_s = []
        for piece in engine.stream(prompts, options, style=style, batch_size=len(rows)):
            _extend(segments[piece.row], piece.segments)
            if piece.result is not None:
                answer = answers[rows[piece.row]]
                answer.results.append(piece.result)
                answer.outputs.append(piece.result.text)
                answer.segments.append(segments[piece.row])
                decode_s.append(piece.result.stats.decode_s)
        batch_decode_s += max(decode_s)
    return [_figures(answer) | {"batch_decode_s": batch_decode_s} for answer in answers]


def build_prompt(engine: Engine, item: Item, outputs: Sequence[str]) -> Prompt:
    """The prompt of an item's next turn: its text, or the conversation so far."""
    turn = len(outputs)
    if turn == 0:
        return item.turns[0]
    if item.is_chat is False or getattr(engine.tokenizer, "chat_template", None) is None:
        said = [text for pair in zip(item.turns, outputs, strict=False) for text in pair]
        return "\n\n".join([*said, item.turns[turn]])
    messages = []
    for question, answer in zip(item.turns, outputs, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": item.turns[turn]}]


def _extend(segments: list[tuple[str, str]], added: Sequence[tuple[str, str]]) -> None:
    """Append in place, joining neighbours of one origin."""
    for text, origin in added:
        if segments and segments[-1][1] == origin:
            segments[-1] = (segments[-1][0] + text, origin)
        else:
            segments.append((text, origin))


def _figures(answer: _Answer) -> dict[str, Any]:
    results = answer.results
    depth = max(len(result.stats.acceptance_by_depth) for result in results)
    lengths = [length for result in results for length in result.accepted_lengths]
    refused = [_refused_sum(result) for result in results]
    return {
        "outputs": answer.outputs,
        "segments": answer.segments,
        "num_prompt_tokens": sum(result.stats.num_prompt_tokens for result in results),
        "num_tokens": sum(result.stats.num_tokens for result in results),
        "target_calls": sum(result.stats.target_calls for result in results),
        "log_prob_sum": sum(sum(result.log_probs) for result in results),
        "kept_lengths": [lengths.count(length) for length in range(depth + 1)],
        "refused_sum": None if None in refused else sum(value for value in refused if value is not None),
        "smallest_log_ratio": _smallest_log_ratio(results),
        "finish_reason": results[-1].finish_reason,
        "decode_s": sum(result.stats.decode_s for result in results),
        "draft_s": sum(result.stats.draft_s for result in results),
        "verify_s": sum(result.stats.verify_s for result in results),
        "prefill_s": sum(result.stats.prefill_s for result in results),
    }


def _smallest_log_ratio(results: Sequence[GenerationResult]) -> float | None:
    """The smallest joint log ratio of any kept draft; None where nothing drafted was kept."""
    pairs = [pair for one in results for pair in zip(one.accepted_lengths, one.joint_log_ratios, strict=True)]
    return min((ratio for length, ratio in pairs if length), default=None)


def _refused_sum(result: GenerationResult) -> float | None:
    num_kept, share = sum(result.accepted_lengths), result.stats.refused_share
    return share * num_kept if share is not None else None if num_kept else 0.0
