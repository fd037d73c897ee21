"""Recorded steps are judged again, by other rules and at other thresholds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtad.decoding.recorded import RecordedSteps, recorded_steps
from mtad.errors import ConfigError, TraceError
from mtad.results.trace_format import Array, TraceFacts
from mtad.results.trace_reader import TraceReader
from mtad.structures import Acceptance, TokenTree
from mtad.verification import VERIFIERS, RuleSettings, StrictSpanVerifier, Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A rule to judge a trace by.

    Attributes:
        rule: Name of the rule.
        threshold: Tau in (0, 1]; None leaves each step the one it was recorded with.
        settings: The rule's dials.
    """

    rule: str
    threshold: float | None = None
    settings: RuleSettings = field(default_factory=RuleSettings)

    def build(self) -> Verifier:
        """The rule itself."""
        return VERIFIERS[self.rule](self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a rule makes of the steps of a trace, each judged in the state that the recorded run had reached.

    Attributes:
        rule: Name of the rule.
        threshold: Tau, None where each step keeps its own.
        tokens_per_call: Emitted tokens by steps, cut at the answers' limits and EOS.
        acceptance_by_depth: Share of steps that keep at least 1, 2, ... drafted tokens.
        log_prob_per_token: Mean natural log-probability of the emitted tokens under the unwarped target.
        perplexity: exp(-`log_prob_per_token`).
        agreement: Share of steps with the recorded decision: the same kept nodes and the same next token.
        on_policy_steps: Steps that the rule itself would have reached: no earlier step of the answer differs.
        on_policy_share: The same as a share of all steps.
        same_answers: Prompts in which no step differs.
    """

    rule: str
    threshold: float | None
    tokens_per_call: float
    acceptance_by_depth: tuple[float, ...]
    log_prob_per_token: float
    perplexity: float
    agreement: float
    on_policy_steps: int
    on_policy_share: float
    same_answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trace judged by some rules.

    Attributes:
        facts: What holds for every step of the trace.
        num_steps: Steps in the trace.
        num_answers: Prompts they belong to.
        partial_steps: Steps in which some distribution is not listed in full, so that other rules are approximate.
        is_cut_off: Whether the end of the trace is missing.
        recorded: The decisions as they were recorded.
        judgements: One per judge.
    """

    facts: TraceFacts
    num_steps: int
    num_answers: int
    partial_steps: int
    is_cut_off: bool
    recorded: Judgement
    judgements: tuple[Judgement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, ready for JSON."""
        return asdict(self)


def replay_trace(
    trace: TraceReader, judges: Sequence[Judge], on_progress: Callable[[int], None] | None = None
) -> Replay:
    """Judge every step of a trace again.

    Args:
        trace: The trace.
        judges: Rules, thresholds and dials.
        on_progress: Told how many bytes of the file were read, after each batch.

    Raises:
        ConfigError: A rule that this trace cannot be judged by.
        TraceError: The trace holds no whole step.
    """
    tallies = [_Tally(judge.rule, judge.threshold, judge.build()) for judge in judges]
    recorded = _Tally(trace.facts.verifier, trace.facts.config.get("threshold"), None)
    prompts, numbers, is_partial = [], [], []
    for batch in trace.batches():
        for steps in recorded_steps(batch):
            _check_judges(judges, steps, trace.facts)
            for tally in [recorded, *tallies]:
                tally.add(steps, trace.facts)
            prompts.append(steps.prompts)
            numbers.append(steps.numbers)
            is_partial.append(steps.is_partial)
        if on_progress is not None:
            on_progress(trace.num_bytes_read)
    if not prompts:
        raise TraceError("the trace holds no whole step: its end is missing; record it again with --trace")
    order = np.lexsort((np.concatenate(numbers), np.concatenate(prompts)))
    ordered = np.concatenate(prompts)[order]
    return Replay(
        facts=trace.facts,
        num_steps=len(ordered),
        num_answers=len(np.unique(ordered)),
        partial_steps=int(np.concatenate(is_partial).sum()),
        is_cut_off=trace.is_cut_off,
        recorded=recorded.judgement(ordered, order),
        judgements=tuple(tally.judgement(ordered, order) for tally in tallies),
    )


def fitting_rules(trace: TraceReader) -> list[str]:
    """Names of the rules that the first steps of a trace can be judged by."""
    batch = next(trace.batches(), None)
    first = [] if batch is None else list(recorded_steps(batch))
    return [name for name in VERIFIERS if all(_fits(name, steps, trace.facts) for steps in first)]


def _fits(name: str, steps: RecordedSteps, facts: TraceFacts) -> bool:
    return _objection(VERIFIERS[name](RuleSettings()), name, steps, facts) is None


def _check_judges(judges: Sequence[Judge], steps: RecordedSteps, facts: TraceFacts) -> None:
    """Refuse rules that need what the trace does not hold.

    Raises:
        ConfigError: The first such rule, with the names of those that fit.
    """
    for judge in judges:
        objection = _objection(judge.build(), judge.rule, steps, facts)
        if objection is not None:
            fitting = ", ".join(name for name in VERIFIERS if _fits(name, steps, facts))
            raise ConfigError(f"rule {judge.rule} {objection}; this trace can be judged by {fitting}")


def _objection(rule: Verifier, name: str, steps: RecordedSteps, facts: TraceFacts) -> str | None:
    """Why a rule cannot judge these steps, None when it can."""
    tree = steps.tree
    if tree.num_nodes == 0:
        return None if name == "target_only" else "needs a draft, and this trace has none"
    if rule.needs_distributions and tree.draft_log_probs is None:
        return f"needs the draft's distributions, which drafter {facts.drafter} does not give"
    if rule.needs_chain and tree.num_nodes != tree.depth:
        return f"judges single paths, and drafter {facts.drafter} drafts trees"
    if facts.is_lossless and not rule.is_lossless and bool(steps.rows.is_greedy.any()):
        return f"is lossy, and a trace of {facts.verifier} at temperature 0 lists the target's best token alone"
    return None


@dataclass(slots=True)
class _Decisions:
    """What was decided in some steps; token ids -1 are unlisted. `[steps, gamma + 1]` and `[steps]`."""

    token_ids: Tensor
    log_probs: Tensor
    num_accepted: Tensor
    is_recorded: Tensor


class _Tally:
    """Collects one rule's decisions; without a rule, the recorded ones."""

    def __init__(self, name: str, threshold: float | None, rule: Verifier | None) -> None:
        self._name = name
        self._threshold = threshold
        self._rule = rule
        self._kept: list[Array] = []
        self._emitted: list[Array] = []
        self._log_probs: list[Array] = []
        self._same: list[Array] = []
        self._gamma = 0

    def add(self, steps: RecordedSteps, facts: TraceFacts) -> None:
        """Judge some steps."""
        acceptance = _recorded(steps) if self._rule is None else _judge(self._rule, self._threshold, steps)
        decisions = _decisions(steps, acceptance)
        places = torch.arange(decisions.token_ids.shape[1])
        end = decisions.num_accepted.unsqueeze(1)
        eos = torch.tensor(facts.eos_token_ids, dtype=torch.int64)
        is_end = torch.isin(decisions.token_ids, eos) & (places <= end)
        up_to_eos = torch.where(is_end, places + 1, len(places)).amin(1)
        emitted = torch.minimum(torch.minimum(decisions.num_accepted + 1, steps.rooms), up_to_eos)
        log_probs = torch.where(places < emitted.unsqueeze(1), decisions.log_probs.double(), 0.0)
        self._kept.append(torch.minimum(decisions.num_accepted, emitted).numpy())
        self._emitted.append(emitted.numpy())
        self._log_probs.append(log_probs.sum(1).numpy())
        self._same.append(decisions.is_recorded.numpy())
        self._gamma = max(self._gamma, steps.tree.depth)

    def judgement(self, prompts: Array, order: Array) -> Judgement:
        """Sum up; `order` sorts the steps by prompt and number, and `prompts` are sorted already."""
        kept, emitted = np.concatenate(self._kept), np.concatenate(self._emitted)
        same = np.concatenate(self._same)[order]
        on_policy = _on_policy(prompts, same)
        mean = float(np.concatenate(self._log_probs).sum() / emitted.sum())
        return Judgement(
            rule=self._name,
            threshold=self._threshold,
            tokens_per_call=float(emitted.mean()),
            acceptance_by_depth=tuple(float((kept > depth).mean()) for depth in range(self._gamma)),
            log_prob_per_token=mean,
            perplexity=math.exp(-mean),
            agreement=float(same.mean()),
            on_policy_steps=int(on_policy.sum()),
            on_policy_share=float(on_policy.mean()),
            same_answers=len(np.unique(prompts)) - len(np.unique(prompts[~same])),
        )


def _judge(rule: Verifier, threshold: float | None, steps: RecordedSteps) -> Acceptance:
    rows, target = steps.rows, steps.target_log_probs
    if threshold is not None:
        log_threshold = torch.tensor(threshold, dtype=torch.float64).log().float()
        rows = replace(rows, log_thresholds=log_threshold.expand_as(rows.log_thresholds))
    if rule.is_lossless:
        # What `RowSettings.resolve_zero_temperature` gives lossless rules at temperature 0.
        best = torch.full_like(target, -torch.inf).scatter_(-1, target.argmax(-1, keepdim=True), 0.0)
        target = torch.where(rows.is_greedy.view(-1, 1, 1), best, target)
    if bool(steps.opens_span.any() | rows.is_strict.any()):
        rule = _RecordedSpans(rule, steps.opens_span)
    return rule.accept(steps.tree, target, rows)


class _RecordedSpans(StrictSpanVerifier):
    """Strict spans where the recorded run saw them; `openers` are flags of nodes instead of tokens."""

    def opens(self, tree: TokenTree) -> Tensor:
        """See `StrictSpanVerifier.opens`."""
        return self.openers


def _recorded(steps: RecordedSteps) -> Acceptance:
    matches = steps.token_ids == steps.next_token_ids.unsqueeze(1)
    return Acceptance(
        path_nodes=steps.path_nodes,
        num_accepted=(steps.path_nodes >= 0).sum(1),
        next_tokens=matches.int().argmax(1),
        joint_log_ratio=steps.tree.joint_draft_log_probs.new_zeros(len(matches)),
    )


def _decisions(steps: RecordedSteps, acceptance: Acceptance) -> _Decisions:
    end = acceptance.num_accepted.unsqueeze(1)
    # Where nothing has mass a draw ends behind the last number.
    tokens = acceptance.emitted_tokens(steps.tree.tokens).clamp(max=steps.token_ids.shape[1] - 1)
    scored_after = torch.cat([torch.zeros_like(end), acceptance.path_nodes.clamp(min=0) + 1], 1)
    batch = torch.arange(len(tokens)).unsqueeze(1)
    token_ids = steps.token_ids.gather(1, tokens)
    same_path = (acceptance.path_nodes == steps.path_nodes).all(1)
    return _Decisions(
        token_ids=token_ids,
        log_probs=steps.unwarped_log_probs[batch, scored_after, tokens],
        num_accepted=acceptance.num_accepted,
        is_recorded=same_path & (token_ids.gather(1, end).squeeze(1) == steps.next_token_ids),
    )


def _on_policy(prompts: Array, same: Array) -> Array:
    """Steps before and at the first that differs in each prompt; `prompts` are sorted, steps in order."""
    differing = np.cumsum(~same)
    before = differing - ~same
    starts = np.flatnonzero(np.concatenate([[True], prompts[1:] != prompts[:-1]]))
    lengths = np.diff(np.append(starts, len(prompts)))
    on_policy: Array = before == np.repeat(before[starts], lengths)
    return on_policy
