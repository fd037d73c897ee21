"""A trace judged again: the recorded rule decides as recorded, other rules as they would have on the spot."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.table_models import Run, letters, random_table
from tests.tiny_engine import tiny_engine
from tests.unit.verification.test_contract import PAIRS, PROMPTS, SETTINGS, fits

from mtad.api import Engine
from mtad.config import RULE_OPTIONS, VERIFIER_NAMES, GenerationOptions
from mtad.decoding import AnswerLimits, Request, RunFacts, check_traceable, generate_pieces, recording
from mtad.decoding.assisted import AssistedDecoder
from mtad.decoding.recorded import recorded_steps
from mtad.decoding.replay import Judge, Replay, fitting_rules, replay_trace
from mtad.decoding.sparse import NUM_LISTED
from mtad.errors import ConfigError, TraceError
from mtad.results.trace_reader import TraceReader
from mtad.structures import GenerationResult, RowSettings, StepRecord
from mtad.verification import VERIFIERS, RuleSettings

VOCAB = 6
LENGTHS = [9, 1, 14, 30, 7]
ROW_SETS = {
    "mixed": SETTINGS,
    "sampled": [replace(setting, temperature=0.8 + 0.2 * row) for row, setting in enumerate(SETTINGS)],
    "greedy": [replace(setting, temperature=0.0) for setting in SETTINGS],
}


def pair_run(verifier: str, drafter: str, *, vocab: int = VOCAB, eos: int | None = None) -> Run:
    target = random_table(31, vocab, order=2)
    draft = target + 0.5 * random_table(32, vocab, order=2)
    options = {"method": "mmtad", "verifier": verifier, "drafter": drafter, "gamma": 3, "beam_width": 2}
    return Run(target, draft, options, eos=frozenset() if eos is None else frozenset({eos}))


class Both:
    """Shows every step to the recorder, and keeps it."""

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder
        self.steps: list[StepRecord] = []

    def observe(self, step: StepRecord) -> None:
        self.recorder.observe(step)
        self.steps.append(step)


def trace_run(
    run: Run, path: Path, settings: list[RowSettings], first_row: int = 0
) -> tuple[list[GenerationResult], list[StepRecord]]:
    """Decode the prompts of the contract tests with a trace."""
    decoder, options = run.decoder(), GenerationOptions(**run.options)
    assert isinstance(decoder, AssistedDecoder)
    requests = [
        Request(
            row=first_row + row,
            prompt=prompt,
            settings=setting,
            limits=AnswerLimits(max_new_tokens=length, eos_token_ids=run.eos),
        )
        for row, (prompt, setting, length) in enumerate(zip(PROMPTS, settings, LENGTHS, strict=True))
    ]
    facts = RunFacts(method="mmtad", gamma=decoder.gamma)
    with recording(path, decoder, options, facts, requests) as recorder:
        assert recorder is not None
        recorder.begin(requests)
        observer = decoder.observer = Both(recorder)
        pieces = generate_pieces(decoder, requests, letters, facts)
        results = {piece.row: piece.result for piece in pieces if piece.result is not None}
    return [results[first_row + row] for row in range(len(requests))], observer.steps


def check_figures(found: Replay, results: list[GenerationResult]) -> None:
    """The recorded decisions give the figures of the run itself."""
    tokens = sum(result.stats.num_tokens for result in results)
    calls = sum(result.stats.target_calls for result in results)
    log_probs = sum(sum(result.log_probs) for result in results)
    assert found.num_steps == calls
    assert found.num_answers == len(results)
    for item in (found.recorded, *found.judgements):
        assert item.tokens_per_call == tokens / calls
        assert item.log_prob_per_token == pytest.approx(log_probs / tokens, abs=1e-6)
        kept = [length for result in results for length in result.accepted_lengths]
        shares = [float(np.mean([length > depth for length in kept])) for depth in range(len(item.acceptance_by_depth))]
        assert item.acceptance_by_depth == pytest.approx(shares)
        assert (item.agreement, item.on_policy_share, item.same_answers) == (1.0, 1.0, len(results))


@pytest.mark.parametrize("rows", ["mixed", "sampled"])
@pytest.mark.parametrize(("verifier", "drafter"), PAIRS)
def test_the_recorded_rule_decides_as_recorded(verifier: str, drafter: str, rows: str, tmp_path: Path) -> None:
    run = pair_run(verifier, drafter, eos=VOCAB - 1 if rows == "mixed" else None)
    results, _ = trace_run(run, tmp_path / "trace", ROW_SETS[rows])
    found = replay_trace(TraceReader(tmp_path / "trace"), [Judge(rule=verifier)])
    assert found.partial_steps == 0
    assert not found.is_cut_off
    check_figures(found, results)


@pytest.mark.parametrize("drafter", [drafter for verifier, drafter in PAIRS if verifier == "joint"])
def test_any_other_rule_decides_as_it_would_have_on_the_spot(drafter: str, tmp_path: Path) -> None:
    _, steps = trace_run(pair_run("joint", drafter), tmp_path / "trace", ROW_SETS["sampled"])
    trace = TraceReader(tmp_path / "trace")
    rules = fitting_rules(trace)
    assert rules == [rule for rule in VERIFIERS if fits(rule, drafter)]
    recorded = [part for batch in trace.batches() for part in recorded_steps(batch)]
    for rule in rules:
        built = VERIFIERS[rule](RuleSettings())
        expected: list[tuple[list[int], int]] = []
        found: list[tuple[list[int], int]] = []
        for step in steps:
            decision = built.accept(step.tree, step.target_log_probs, step.rows)
            active = step.active
            expected += zip(decision.path_nodes[active].tolist(), decision.next_tokens[active].tolist(), strict=True)
        for part in recorded:
            decision = built.accept(part.tree, part.target_log_probs, part.rows)
            token_ids = part.token_ids.gather(1, decision.next_tokens.unsqueeze(1)).squeeze(1)
            found += zip(decision.path_nodes.tolist(), token_ids.tolist(), strict=True)
        assert found == expected


@pytest.mark.parametrize("verifier", ["joint", "threshold"])
def test_strict_spans_are_judged_as_in_the_run(verifier: str, tmp_path: Path) -> None:
    # Token 1 is the letter b, which opens a span, and token 3 is d, which closes it.
    run = pair_run(verifier, "beam_tree")
    run.options |= {"strict": ("b,d",), "gamma": 4}
    settings = [replace(setting, threshold=0.01) for setting in ROW_SETS["sampled"]]
    results, steps = trace_run(run, tmp_path / "trace", settings)
    is_strict = torch.cat([step.rows.is_strict[step.active] for step in steps])
    assert is_strict.any()
    assert not is_strict.all()
    check_figures(replay_trace(TraceReader(tmp_path / "trace"), [Judge(rule=verifier)]), results)


def test_steps_keep_the_place_of_their_prompt_when_rows_leave_and_batches_follow(tmp_path: Path) -> None:
    engine = tiny_engine()
    prompts = ["why is the sky blue?", "a", "tell me more of this", "b", "c"]
    results = engine.generate(prompts, trace=tmp_path / "trace", batch_size=3, max_new_tokens=14, gamma=3, beam_width=2)
    columns = [batch.columns() for batch in TraceReader(tmp_path / "trace").batches()]
    rows = np.concatenate([part["row"][0] for part in columns])
    numbers = np.concatenate([part["step"][0] for part in columns])
    rooms = np.concatenate([part["room"][0] for part in columns])
    for row, result in enumerate(results):
        calls = result.stats.target_calls
        assert numbers[rows == row].tolist() == list(range(calls))
        assert rooms[rows == row][0] == 14
        assert (rooms[rows == row] > 0).all()
    check_figures(replay_trace(TraceReader(tmp_path / "trace"), [Judge(rule="joint")]), results)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_cache_and_attention_leave_a_trace_that_replays(tmp_path: Path, temperature: float) -> None:
    engine: Engine = tiny_engine()
    for method in ("mmtad", "mtad", "speculative", "autoregressive"):
        results = engine.generate(
            ["why is the sky blue?", "tell me"],
            trace=str(tmp_path / method),
            method=method,
            temperature=temperature,
            max_new_tokens=20,
            seed=0,
        )
        trace = TraceReader(tmp_path / method)
        settings = GenerationOptions(method=method, temperature=temperature, max_new_tokens=20, seed=0)
        assert trace.facts.config == json.loads(json.dumps(engine.settings_record(settings)))
        check_figures(replay_trace(trace, [Judge(rule=trace.facts.verifier)]), results)


def test_tracing_changes_no_answer(tmp_path: Path) -> None:
    engine = tiny_engine()
    plain = engine.generate(["tell me", "a"], max_new_tokens=20, seed=3)
    traced = engine.generate(["tell me", "a"], max_new_tokens=20, seed=3, trace=tmp_path / "trace")
    assert [item.token_ids for item in plain] == [item.token_ids for item in traced]


def test_a_closed_stream_leaves_a_whole_trace(tmp_path: Path) -> None:
    pieces = tiny_engine().stream(["tell me"], max_new_tokens=20, trace=tmp_path / "trace", ignore_eos=True)
    for _ in range(3):
        next(pieces)
    pieces.close()
    found = replay_trace(TraceReader(tmp_path / "trace"), [Judge(rule="joint")])
    assert (found.num_steps, found.is_cut_off) == (3, False)


def test_the_threshold_of_a_judge_is_that_of_a_run_with_it(tmp_path: Path) -> None:
    # The first step of every answer is in the state that a run at any threshold starts from.
    for threshold in (0.05, 0.9):
        settings = [replace(item, threshold=0.5) for item in ROW_SETS["sampled"]]
        trace_run(pair_run("joint", "beam_tree"), tmp_path / "trace", settings)
        wanted = [replace(item, threshold=threshold) for item in settings]
        _, steps = trace_run(pair_run("joint", "beam_tree"), tmp_path / "other", wanted)
        trace = TraceReader(tmp_path / "trace")
        judged = replay_trace(trace, [Judge(rule="joint", threshold=threshold)]).judgements[0]
        own = replay_trace(TraceReader(tmp_path / "other"), [Judge(rule="joint")]).judgements[0]
        assert judged.threshold == threshold
        assert judged.agreement < 1
        first = next(recorded_steps(next(trace.batches())))
        rows = replace(first.rows, log_thresholds=torch.full((len(first.prompts),), np.log(threshold)))
        decision = VERIFIERS["joint"](RuleSettings()).accept(first.tree, first.target_log_probs, rows)
        starts = first.numbers == 0
        assert decision.path_nodes[starts].tolist() == steps[0].acceptance.path_nodes.tolist()
        assert own.agreement == 1


def test_on_policy_ends_behind_the_first_other_decision(tmp_path: Path) -> None:
    trace_run(pair_run("joint", "beam_tree"), tmp_path / "trace", ROW_SETS["sampled"])
    judge = Judge(rule="joint", threshold=0.02)
    found = replay_trace(TraceReader(tmp_path / "trace"), [judge]).judgements[0]
    batch = next(TraceReader(tmp_path / "trace").batches())
    steps = next(recorded_steps(batch))
    rows = replace(steps.rows, log_thresholds=torch.full((len(steps.prompts),), np.log(0.02)))
    decision = judge.build().accept(steps.tree, steps.target_log_probs, rows)
    next_ids = steps.token_ids.gather(1, decision.next_tokens.unsqueeze(1)).squeeze(1)
    same = (decision.path_nodes == steps.path_nodes).all(1) & (next_ids == steps.next_token_ids)
    expected, same_answers = 0, 0
    for prompt in range(len(PROMPTS)):
        own = same.numpy()[steps.prompts == prompt]
        expected += len(own) if own.all() else int(own.argmin()) + 1
        same_answers += bool(own.all())
    assert 0 < found.agreement < 1
    assert (found.on_policy_steps, found.same_answers) == (expected, same_answers)
    assert found.on_policy_share == expected / len(steps.prompts)


def test_dials_reach_the_rule(tmp_path: Path) -> None:
    trace_run(pair_run("typical", "beam_tree"), tmp_path / "trace", ROW_SETS["sampled"])
    dials = [RuleSettings(typical_epsilon=epsilon, typical_delta=1.0) for epsilon in (0.001, 0.9)]
    judges = [Judge(rule="typical", settings=settings) for settings in dials]
    loose, strict = replay_trace(TraceReader(tmp_path / "trace"), judges).judgements
    assert loose.tokens_per_call > strict.tokens_per_call


def test_a_wide_distribution_is_listed_in_part_and_the_recorded_rule_still_replays(tmp_path: Path) -> None:
    settings = [RowSettings(seed=seed, temperature=2.0) for seed in range(5)]
    for verifier, drafter in [("joint", "beam_tree"), ("exact_match", "beam"), ("target_only", "none")]:
        run = pair_run(verifier, drafter, vocab=2 * NUM_LISTED)
        results, _ = trace_run(run, tmp_path / "trace", settings)
        found = replay_trace(TraceReader(tmp_path / "trace"), [Judge(rule=verifier)])
        assert found.partial_steps == found.num_steps
        check_figures(found, results)


def test_greedy_rows_of_a_lossy_rule_can_be_judged_by_lossless_ones(tmp_path: Path) -> None:
    settings = ROW_SETS["greedy"]
    _, steps = trace_run(pair_run("joint", "beam_tree"), tmp_path / "trace", settings)
    exact = replay_trace(TraceReader(tmp_path / "trace"), [Judge(rule="exact_match")]).judgements[0]
    picks = [step.target_log_probs[step.active].argmax(-1) for step in steps]
    expected = [
        int((tree_tokens == pick.gather(1, parents + 1))[row, :1].any())
        for step, pick in zip(steps, picks, strict=True)
        for tree_tokens, parents in [(step.tree.tokens[step.active], step.tree.parents[step.active])]
        for row in range(len(pick))
    ]
    assert exact.acceptance_by_depth[0] >= float(np.mean(expected)) > 0


def test_rules_that_a_trace_cannot_be_judged_by_are_refused_with_those_that_can(tmp_path: Path) -> None:
    trace_run(pair_run("joint", "beam_tree"), tmp_path / "tree", ROW_SETS["sampled"])
    trace_run(pair_run("traversal", "branching_tree"), tmp_path / "drawn", ROW_SETS["sampled"])
    trace_run(pair_run("target_only", "none"), tmp_path / "none", ROW_SETS["sampled"])
    trace_run(pair_run("block", "chain"), tmp_path / "greedy", ROW_SETS["greedy"])
    cases = [
        ("tree", "block", "needs the draft's distributions, which drafter beam_tree does not give"),
        ("drawn", "token_rejection", "judges single paths, and drafter branching_tree drafts trees"),
        ("none", "joint", "needs a draft, and this trace has none; this trace can be judged by target_only$"),
        ("greedy", "joint", "is lossy, and a trace of block at temperature 0 lists the target's best token alone"),
    ]
    for name, rule, part in cases:
        trace = TraceReader(tmp_path / name)
        with pytest.raises(ConfigError, match=part) as refusal:
            replay_trace(trace, [Judge(rule=rule)])
        assert str(refusal.value).endswith(f"can be judged by {', '.join(fitting_rules(trace))}")


def test_a_trace_without_a_whole_step_is_refused(tmp_path: Path) -> None:
    trace_run(pair_run("joint", "beam_tree"), tmp_path / "trace", ROW_SETS["sampled"])
    content = (tmp_path / "trace").read_bytes()
    (tmp_path / "trace").write_bytes(content[: len(content) // 2])
    with pytest.raises(TraceError, match="holds no whole step"):
        replay_trace(TraceReader(tmp_path / "trace"), [Judge(rule="joint")])


@pytest.mark.parametrize("method", ["beam_sampling", "dynamic_beam", "mtjd"])
def test_methods_without_drafts_keep_no_trace(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{method} keeps no trace; .* use one of autoregressive, "):
        check_traceable(GenerationOptions(method=method))
    with pytest.raises(ConfigError, match="keeps no trace"):
        tiny_engine().generate("a", method=method, trace=tmp_path / "trace")
    assert not (tmp_path / "trace").exists()


def test_every_dial_of_a_rule_is_listed() -> None:
    assert set(RULE_OPTIONS) <= set(VERIFIER_NAMES)
    listed = {name for names in RULE_OPTIONS.values() for name in names}
    assert listed == {"threshold", *RuleSettings.__dataclass_fields__}
