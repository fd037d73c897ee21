"""Steps of the loop become rows of a trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtad.config import GenerationOptions
from mtad.decoding.answers import RunFacts
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.decoder import Decoder
from mtad.decoding.generation import Request
from mtad.decoding.methods import ASSISTED_METHODS, resolve_pair
from mtad.decoding.outcome import unwarped_log_probs
from mtad.decoding.sparse import SparseLaws, list_laws
from mtad.errors import ConfigError
from mtad.results.trace_format import Array, Column, Columns, TraceFacts
from mtad.results.trace_writer import TraceWriter
from mtad.structures import Acceptance, StepRecord, TokenTree
from mtad.verification import StrictSpanVerifier, Verifier

_Index = Tensor | slice


@dataclass(frozen=True, slots=True)
class _Batch:
    """Where the rows of the batch at hand started, `[batch]` each: prompt index, committed tokens, wanted tokens."""

    rows: Array
    positions: Array
    max_new_tokens: Array
    num_steps: Array


class TraceRecorder:
    """An observer of the loop that writes every step of every running row into a trace.

    Args:
        writer: The trace.
        rule: Makes the decisions.
    """

    def __init__(self, writer: TraceWriter, rule: Verifier) -> None:
        self._writer = writer
        self._rule = rule
        self.begin([])

    def begin(self, requests: Sequence[Request]) -> None:
        """Hear which prompts the next batch holds."""
        self._batch = _Batch(
            rows=np.array([request.row for request in requests]),
            positions=np.array([len(request.prompt) - 1 for request in requests]),
            max_new_tokens=np.array([request.limits.max_new_tokens for request in requests]),
            num_steps=np.zeros(len(requests), dtype=np.int64),
        )

    def observe(self, step: StepRecord) -> None:
        """See `StepObserver.observe`."""
        num_rows = int(step.active.sum())
        # A slice spares copies as large as the vocabulary.
        active = slice(None) if num_rows == len(step.active) else step.active.nonzero().squeeze(1)
        if num_rows:
            opens = self._opens(step.tree)[active]
            spans = {"opens_span": (_numpy(opens).ravel(), np.full(num_rows, step.tree.num_nodes))}
            self._writer.add(self._row_columns(step, active) | _step_columns(step, active) | spans)

    def _opens(self, tree: TokenTree) -> Tensor:
        if isinstance(self._rule, StrictSpanVerifier):
            return self._rule.opens(tree)
        return torch.zeros_like(tree.valid)

    def _row_columns(self, step: StepRecord, active: _Index) -> Columns:
        batch, ids = self._batch, _numpy(step.row_ids[active])
        positions = _numpy(step.rows.positions[active])
        numbers = batch.num_steps[ids]
        batch.num_steps[ids] += 1
        return {
            "row": (batch.rows[ids],),
            "step": (numbers,),
            "position": (positions,),
            "room": (batch.max_new_tokens[ids] - (positions - batch.positions[ids]),),
            "seed": (_numpy(step.rows.seeds[active]),),
            "is_greedy": (_numpy(step.rows.is_greedy[active]),),
            "log_threshold": (_numpy(step.rows.log_thresholds[active]),),
            "is_strict": (_numpy(step.rows.is_strict[active]),),
            "pending_token": (_numpy(step.pending[active]),),
        }


def _step_columns(step: StepRecord, active: _Index) -> Columns:
    tree, acceptance, logits = step.tree, step.acceptance, step.logits[active]
    tokens, next_tokens = tree.tokens[active], acceptance.next_tokens[active]
    always = torch.cat([tokens, next_tokens.unsqueeze(1)], 1)
    is_greedy = step.rows.is_greedy[active]
    target = list_laws(step.target_log_probs[active], logits, always, is_greedy)
    columns = _tree_columns(tree, active) | _decision_columns(acceptance, tree.tokens, logits, active)
    columns |= _law_columns("target", target) | {"unwarped_log_probs": _nested(target.unwarped, target.counts)}
    if tree.draft_log_probs is None:
        nothing = np.zeros(0, dtype=np.int32)
        empty = (nothing, nothing, np.zeros(len(tokens), dtype=np.int32))
        joint = columns["joint_draft_log_probs"][0]
        return columns | {"draft_tokens": empty, "draft_log_probs": (joint[:0], *empty[1:])}
    drawn = tree.draft_log_probs[active]
    return columns | _law_columns("draft", list_laws(drawn, drawn, tokens, is_greedy))


def _tree_columns(tree: TokenTree, active: _Index) -> Columns:
    num_rows = len(tree.tokens[active])
    branching = np.array(tree.branching or (), dtype=np.int8)
    nodes = {
        "tokens": tree.tokens,
        "parents": tree.parents,
        "depths": tree.depths,
        "valid": tree.valid,
        "carried": tree.carried,
        "joint_draft_log_probs": tree.joint_draft_log_probs,
    }
    columns: Columns = {
        name: (_numpy(values[active]).ravel(), np.full(num_rows, tree.num_nodes)) for name, values in nodes.items()
    }
    return columns | {
        "winner": (_numpy(tree.winner[active]),),
        "max_depth": (np.full(num_rows, tree.depth),),
        "branching": (np.tile(branching, num_rows), np.full(num_rows, len(branching))),
        "has_replacement": (np.full(num_rows, tree.has_replacement),),
    }


def _decision_columns(acceptance: Acceptance, drafted: Tensor, logits: Tensor, active: _Index) -> Columns:
    path, kept = acceptance.path_nodes[active], acceptance.num_accepted[active]
    places = torch.arange(path.shape[1] + 1, device=path.device)
    scored_after = torch.cat([torch.zeros_like(kept.unsqueeze(1)), path.clamp(min=0) + 1], 1)
    rows = torch.arange(len(path), device=path.device).unsqueeze(1)
    emitted = acceptance.emitted_tokens(drafted)[active]
    log_probs = unwarped_log_probs(logits[rows, scored_after], emitted)
    return {
        "path": (_numpy(path[places[:-1] < kept.unsqueeze(1)]), _numpy(kept)),
        "next_token": (_numpy(acceptance.next_tokens[active]),),
        "joint_log_ratio": (_numpy(acceptance.joint_log_ratio[active]),),
        "emitted_log_probs": (_numpy(log_probs[places <= kept.unsqueeze(1)]), _numpy(kept) + 1),
    }


def _law_columns(name: str, laws: SparseLaws) -> Columns:
    return {
        f"{name}_tokens": _nested(laws.entries, laws.counts),
        f"{name}_log_probs": _nested(laws.log_probs, laws.counts),
    }


def _nested(values: Array, counts: Array) -> Column:
    return values, counts.ravel(), np.full(len(counts), counts.shape[1])


def _numpy(values: Tensor) -> Array:
    numbers: Array = values.cpu().numpy()
    return numbers


def check_traceable(options: GenerationOptions) -> None:
    """Refuse methods without steps that a rule judges.

    Raises:
        ConfigError: Such a method, with the names of the others; or a guard, which leaves drafts out.
    """
    if options.guard == "on":
        raise ConfigError("a trace keeps whole drafts, got guard on; leave --guard or --trace out")
    if resolve_pair(options) is None:
        known = ", ".join(ASSISTED_METHODS)
        raise ConfigError(f"method {options.method} keeps no trace; leave --trace out or use one of {known}")


@contextmanager
def recording(
    path: Path | None, decoder: Decoder, options: GenerationOptions, run: RunFacts, requests: Sequence[Request]
) -> Iterator[TraceRecorder | None]:
    """Record what the decoder does into a file; without a path, nothing.

    Args:
        path: The trace, which is overwritten.
        decoder: Runs the requests; `check_traceable` has let its method pass.
        options: Names the method, the drafter and the rule.
        run: Holds the resolved settings.
        requests: All prompts of the run.

    Raises:
        TraceError: The file cannot be written, or pyarrow is missing.
    """
    if path is None:
        yield None
        return
    pair = resolve_pair(options)
    assert pair is not None, "check_traceable() comes first"
    assert isinstance(decoder, AssistedDecoder)
    facts = TraceFacts(
        method=run.method,
        drafter=pair.drafter,
        verifier=pair.verifier,
        is_lossless=decoder.verifier.is_lossless,
        num_prompts=len(requests),
        vocab_size=decoder.target.vocab_size,
        eos_token_ids=tuple(sorted({token for item in requests for token in item.limits.eos_token_ids})),
        config=run.config,
    )
    with TraceWriter(path, facts) as writer:
        decoder.observer = recorder = TraceRecorder(writer, decoder.verifier)
        try:
            yield recorder
        finally:
            decoder.observer = None
