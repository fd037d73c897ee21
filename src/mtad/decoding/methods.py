"""Method names become decoders: a drafter, a rule and the loop, or a decoder of their own."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mtad.config import RULE_OPTIONS, GenerationOptions
from mtad.constraints import ConstrainedRunner, Constraints
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.beam_sampling import BeamSamplingDecoder
from mtad.decoding.decoder import Decoder
from mtad.decoding.draft_guard import Clock, DraftGuard, depths_to_choose_from
from mtad.decoding.draft_length import AdaptiveLength
from mtad.decoding.dynamic_beam import DynamicBeamDecoder
from mtad.decoding.joint_beam import JointBeamDecoder
from mtad.decoding.joint_exact import JointExactDecoder
from mtad.decoding.machine import Machine
from mtad.decoding.row_policy import RowPolicy
from mtad.decoding.strict_spans import SpanVocabulary, StrictSpans
from mtad.drafting import DRAFTERS, BeamSampler, Drafter, DraftShape
from mtad.errors import ConfigError
from mtad.models.runner import ModelRunner
from mtad.verification import VERIFIERS, RuleSettings, StrictSpanVerifier, Verifier

TokenTexts = Callable[[], Sequence[str]]
Loop = TypeVar("Loop", bound=AssistedDecoder)


@dataclass(frozen=True, slots=True)
class AssistedMethod:
    """A drafter and a rule that run on the common loop."""

    drafter: str
    verifier: str


ASSISTED_METHODS: dict[str, AssistedMethod] = {
    "autoregressive": AssistedMethod("none", "target_only"),
    "speculative": AssistedMethod("chain", "token_rejection"),
    "mtad": AssistedMethod("beam", "joint"),
    "mmtad": AssistedMethod("beam_tree", "joint"),
}


def needs_draft_model(options: GenerationOptions) -> bool:
    """Whether the method wants an auxiliary model beside the target."""
    pair = resolve_pair(options)
    if options.exit_layers is not None:
        return False
    if pair is None:
        return options.method == "dynamic_beam"
    return DRAFTERS[pair.drafter].needs_model and not DRAFTERS[pair.drafter].exits_early


def exit_layers(options: GenerationOptions, target: ModelRunner) -> int | None:
    """Layers of the target that draft; None where they do not.

    Raises:
        ConfigError: More layers than the target has.
    """
    count = options.exit_layers
    if count is None and options.drafter is not None and DRAFTERS[options.drafter].exits_early:
        count = max(1, target.num_layers // 3)
    if count is not None and count > target.num_layers:
        raise ConfigError(
            f"exit_layers must be <= {target.num_layers}, the layers of the target, got {count}; lower it"
        )
    return count


def resolve_pair(options: GenerationOptions) -> AssistedMethod | None:
    """Drafter and rule of a method, with the options' own choices put in; None for those that take none.

    Raises:
        ConfigError: A rule that cannot judge the drafter's trees, or parts for a method that takes none.
    """
    base = ASSISTED_METHODS.get(options.method)
    if base is None:
        if options.drafter or options.verifier:
            raise ConfigError(f"{options.method} takes no drafter or verifier; leave them out or choose another method")
        if options.draft_length == "adaptive" or options.draft_confidence or options.strict or options.top_logprobs:
            raise ConfigError(
                f"{options.method} takes no adaptive draft_length, draft_confidence, strict or top_logprobs; leave "
                "them out or choose another method"
            )
        return None
    pair = AssistedMethod(options.drafter or base.drafter, options.verifier or base.verifier)
    drafter, rule = DRAFTERS[pair.drafter], build_rule(pair.verifier, options)
    if pair.drafter == "none" and pair.verifier != "target_only":
        raise ConfigError(f"verifier {pair.verifier} needs a draft, got drafter none; choose another drafter")
    if rule.needs_distributions and not drafter.gives_distributions:
        raise ConfigError(
            f"verifier {pair.verifier} needs tokens drawn from distributions, which drafter {pair.drafter} "
            f"does not give; use drafter {' or '.join(_fitting(rule))}"
        )
    if rule.needs_chain and not drafter.gives_chain:
        raise ConfigError(
            f"verifier {pair.verifier} judges single paths, got drafter {pair.drafter}; "
            f"use {' or '.join(_fitting(rule))}"
        )
    return pair


def check_rule_options(options: GenerationOptions, given: Collection[str]) -> None:
    """Refuse a rule's dial that was set for another rule.

    Args:
        options: The method, or its parts.
        given: Names of the settings that the caller chose himself.

    Raises:
        ConfigError: The first dial that the rule does not read.
    """
    pair = resolve_pair(options)
    if "beam_acceptance" in given and options.method != "dynamic_beam":
        raise ConfigError(
            f"beam_acceptance is a dial of method dynamic_beam, got method {options.method}; leave it out"
        )
    own = RULE_OPTIONS.get(pair.verifier, ()) if pair is not None else ()
    for names in RULE_OPTIONS.values():
        for name in names:
            if name in given and name not in own:
                readers = " or ".join(other for other, dials in RULE_OPTIONS.items() if name in dials)
                judge = f"verifier {pair.verifier}" if pair is not None else f"method {options.method}"
                raise ConfigError(f"{name} is a dial of {readers}, got {judge}; leave it out or choose another rule")


def fitting_drafters(verifier: str) -> list[str]:
    """Drafters with a model whose trees a rule can judge, the one to try first in front.

    A rule that takes anything is shown with the beam tree, one that needs distributions with sampled trees.
    """
    fitting = _fitting(build_rule(verifier, GenerationOptions()))
    favourites = [name for name in ("beam_tree", "branching_tree", "chain") if name in fitting]
    return favourites + [name for name in fitting if name not in favourites]


def _fitting(rule: Verifier) -> list[str]:
    return [
        name
        for name, entry in DRAFTERS.items()
        if name != "none"
        and (entry.gives_distributions or not rule.needs_distributions)
        and (entry.gives_chain or not rule.needs_chain)
    ]


def build_decoder(
    options: GenerationOptions,
    target: ModelRunner,
    draft: ModelRunner | None,
    eos_token_ids: frozenset[int],
    *,
    temperature: float,
    token_texts: TokenTexts | None = None,
    is_constrained: bool = False,
    machine: Machine | None = None,
) -> Decoder:
    """The decoder of a method.

    Args:
        options: Method, shape and rule.
        target: The large model.
        draft: The auxiliary model; None where the method needs none.
        eos_token_ids: Tokens that end an answer.
        temperature: Resolved temperature; `mtjd` searches exactly at 0.
        token_texts: Gives the text of every token by itself; only asked for strict spans.
        is_constrained: Whether any row has constraints.
        machine: Records iterations and times them; one of its own when None.

    Raises:
        ConfigError: The method needs a draft model and there is none, or its parts do not fit.
    """
    if resolve_pair(options) is not None:
        auxiliary = auxiliary_model(options, target, draft)
        details = LoopDetails(eos_token_ids, token_texts, is_constrained, machine or Machine())
        return build_loop(AssistedDecoder, options, target, auxiliary, details)
    eos = torch.tensor(sorted(eos_token_ids), dtype=torch.int64, device=target.device)
    if is_constrained:
        raise ConfigError(
            f"{options.method} takes no penalties, logit bias, logits processors or grammar, got some; leave "
            f"them out or use one of {', '.join(ASSISTED_METHODS)}"
        )
    sampler = BeamSampler(width=options.beam_width, draw=options.draw, eos_token_ids=eos, keeps_unwarped=True)
    if options.method == "beam_sampling":
        return BeamSamplingDecoder(target, sampler)
    if options.method == "dynamic_beam":
        auxiliary = auxiliary_model(options, target, draft)
        assert auxiliary is not None
        return DynamicBeamDecoder(target, auxiliary, options.gamma, sampler, options.beam_acceptance)
    if temperature == 0:
        return JointExactDecoder(target, options.gamma, eos_token_ids, options.search_budget)
    return JointBeamDecoder(target, options.gamma, sampler)


@dataclass(frozen=True, slots=True)
class LoopDetails:
    """What the common loop takes beside its models and options; see `build_decoder`."""

    eos_token_ids: frozenset[int]
    token_texts: TokenTexts | None
    is_constrained: bool
    machine: Machine


def build_loop(
    kind: type[Loop],
    options: GenerationOptions,
    target: ModelRunner,
    auxiliary: ModelRunner | None,
    details: LoopDetails,
) -> Loop:
    """The common loop with a drafter and a rule.

    Args:
        kind: `AssistedDecoder`, or a class of its kind.
        options: A method that runs on the loop.
        target: The large model.
        auxiliary: What `auxiliary_model` gave.
        details: The rest.

    Raises:
        ConfigError: As `build_decoder`.
    """
    pair = resolve_pair(options)
    assert pair is not None, "the method has a decoder of its own"
    eos = torch.tensor(sorted(details.eos_token_ids), dtype=torch.int64, device=target.device)
    constraints = Constraints() if details.is_constrained else None
    if auxiliary is not None and constraints is not None:
        auxiliary = ConstrainedRunner(auxiliary, constraints)
    shape = DraftShape(
        gamma=options.gamma,
        beam_width=options.beam_width,
        draw=options.draw,
        eos_token_ids=eos,
        vocab_size=target.vocab_size,
        branching=options.branching_counts,
        has_replacement=options.siblings == "with_replacement",
        node_budget=options.node_budget,
        lookup_ngram=options.lookup_ngram,
    )
    drafter = DRAFTERS[pair.drafter].build(auxiliary, shape)
    rule = build_rule(pair.verifier, options)
    policies: list[RowPolicy] = []
    if options.draft_length == "adaptive" and drafter.gamma:
        policies.append(AdaptiveLength(drafter.gamma, options.draft_level_cost))
    if options.strict:
        vocabulary = _span_vocabulary(options, target, details.token_texts)
        policies.append(StrictSpans(vocabulary, options.strict))
        rule = StrictSpanVerifier(rule, vocabulary.openers)
    models = [target] if auxiliary is None else [target, auxiliary]
    is_captured = options.cuda_graphs == "auto" and all(model.can_be_captured for model in models)
    capture = details.machine.capture if is_captured else None
    guard = _guard(options, drafter, details.machine.clock)
    compiler = details.machine.compiler_for(options.compile)
    return kind(target, drafter, rule, policies, constraints, capture, guard, compiler)


def _guard(options: GenerationOptions, drafter: Drafter, clock: Clock) -> DraftGuard | None:
    """What watches over the draft; `auto` is resolved before this point."""
    pair = resolve_pair(options)
    if options.guard != "on" or pair is None or not drafter.gamma:
        return None
    return DraftGuard(depths_to_choose_from(drafter.gamma, shrinks=DRAFTERS[pair.drafter].shrinks), clock)


def _span_vocabulary(options: GenerationOptions, target: ModelRunner, token_texts: TokenTexts | None) -> SpanVocabulary:
    if token_texts is None:
        raise ConfigError(
            "strict spans are found in text, which needs a tokenizer; use mtad.Engine, or leave strict out"
        )
    texts = list(token_texts())[: target.vocab_size]
    return SpanVocabulary.of([*texts, *[""] * (target.vocab_size - len(texts))], options.strict, target.device)


def auxiliary_model(options: GenerationOptions, target: ModelRunner, draft: ModelRunner | None) -> ModelRunner | None:
    """The target's first layers where they are asked for, else the draft; None where the method needs neither.

    Raises:
        ConfigError: There is no draft, or the target has fewer layers.
    """
    pair = resolve_pair(options)
    if pair is not None and not DRAFTERS[pair.drafter].needs_model:
        return None
    count = exit_layers(options, target)
    if count is not None:
        return target.first_layers(count)
    if draft is None:
        raise ConfigError(f"method {options.method} needs a draft model; name one with --draft")
    return draft


def build_rule(verifier: str, options: GenerationOptions) -> Verifier:
    """The rule of a name, with its dials from the options."""
    return VERIFIERS[verifier](RuleSettings.from_options(options))
