"""Requests that join and leave get the answers they get alone."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.recorded_calls import record_call
from tests.table_models import Run, letters, random_table
from tests.tiny_models import tiny_model
from tests.unit.models.test_translated_runner import full_map

from mtad.config import GenerationOptions
from mtad.decoding import AnswerLimits, BatchRoom, Machine, Request, RollingBatch, RollingShelf
from mtad.errors import UnsupportedOperationError
from mtad.models.table import TableRunner
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.translated_runner import TranslatedRunner
from mtad.structures import GenerationResult, Piece, RowConstraints, RowSettings

VOCAB = 6
EOS = frozenset({5})
METHODS: list[dict[str, Any]] = [
    {"method": "mmtad", "gamma": 3, "beam_width": 2},
    {"method": "mmtad", "gamma": 2, "beam_width": 3, "draw": "gumbel", "draft_length": "adaptive"},
    {"method": "mtad", "gamma": 4, "beam_width": 2},
    {"method": "speculative", "gamma": 3},
    {"method": "speculative", "verifier": "traversal", "drafter": "branching_tree", "branching": "2,2"},
    {"method": "mmtad", "drafter": "dynamic_tree", "gamma": 3, "beam_width": 2, "node_budget": 5},
    {"method": "mmtad", "drafter": "prompt_lookup", "gamma": 3},
    {"method": "mmtad", "drafter": "early_exit", "gamma": 2, "beam_width": 2, "exit_layers": 1},
    {"method": "mmtad", "gamma": 2, "beam_width": 2, "strict": ("b,c",)},
    {"method": "autoregressive"},
]


class Ban:
    """A grammar that forbids a token for good and ends with EOS."""

    def cursor(self) -> "Ban":
        return self

    def allowed(self, path: Sequence[int]) -> torch.Tensor | None:
        return torch.tensor([(1 << VOCAB) - 1 - 2], dtype=torch.int32)

    def advance(self, tokens: Sequence[int]) -> None:
        """Nothing to remember."""


def _push(token_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    scores[:, int(token_ids.sum()) % VOCAB] += 1.5
    return scores


CONSTRAINTS = [
    RowConstraints(),
    RowConstraints(repetition_penalty=1.7),
    RowConstraints(presence_penalty=0.8, frequency_penalty=0.4),
    RowConstraints(logit_bias=((1, -2.0), (2, 1.0))),
    RowConstraints(logits_processors=(_push,)),
    RowConstraints(grammar=Ban()),
]
TABLES = random_table(1, VOCAB, 3), random_table(2, VOCAB, 3)


def batch(room: BatchRoom, **changes: Any) -> RollingBatch:
    target, draft = changes.pop("runners", None) or (TableRunner(TABLES[0]), TableRunner(TABLES[1]))
    texts = [letters([token]) for token in range(VOCAB)]
    room = room.fitted(target, draft)
    return RollingBatch(RollingShelf(target, draft, room, lambda: texts, **changes), room, letters)


def random_request(chance: random.Random, ticket: int, constraints: RowConstraints) -> Request:
    return Request(
        row=ticket,
        prompt=[chance.randrange(VOCAB) for _ in range(chance.choice([1, 2, 5, 20, 45]))],
        settings=RowSettings(
            seed=chance.randrange(2**40),
            temperature=chance.choice([0.0, 0.7, 1.3]),
            top_k=chance.choice([0, 3]),
            top_p=chance.choice([1.0, 0.8]),
            threshold=chance.choice([0.05, 0.5, 0.9]),
            draft_confidence=chance.choice([0.0, 0.0, 0.1]),
            constraints=constraints,
            top_logprobs=chance.choice([0, 0, 2]),
        ),
        limits=AnswerLimits(max_new_tokens=chance.randrange(1, 20), eos_token_ids=EOS, stop=("ddd",)),
    )


def alone(request: Request, options: dict[str, Any]) -> GenerationResult:
    settings, limits = request.settings, request.limits
    run = Run(*TABLES, options, EOS, settings.temperature, is_constrained=bool(settings.constraints))
    return run.generate([request.prompt], [settings], [limits.max_new_tokens], limits.stop)[0]


def check_same(here: GenerationResult, there: GenerationResult) -> None:
    assert here.token_ids == there.token_ids
    assert here.text == there.text
    assert here.provenance == there.provenance
    assert here.finish_reason == there.finish_reason
    assert here.accepted_lengths == there.accepted_lengths
    assert here.log_probs == pytest.approx(there.log_probs, abs=1e-9)
    assert len(here.top_log_probs) == len(there.top_log_probs)
    for ours, theirs in zip(here.top_log_probs, there.top_log_probs, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_random_joins_and_leaves_change_no_answer(seed: int) -> None:
    chance = random.Random(seed)
    room = BatchRoom(max_rows=chance.choice([1, 3, 5]), max_tokens=70, prefill_chunk=chance.choice([1, 8, 64]))
    rolling = batch(room)
    kinds = chance.sample(METHODS, 3) if seed < 3 else METHODS
    asked: dict[int, tuple[Request, dict[str, Any]]] = {}
    cancelled: set[int] = set()
    results: dict[int, GenerationResult] = {}
    for _ in range(2000):
        if len(asked) < 24 and chance.random() < 0.5:
            request = random_request(chance, len(asked), chance.choice(CONSTRAINTS))
            if request.row and chance.random() < 0.4:
                shared = asked[chance.randrange(request.row)][0].prompt
                request = Request(
                    row=request.row,
                    prompt=[*shared, *request.prompt][:48],
                    settings=request.settings,
                    limits=request.limits,
                )
            asked[request.row] = request, chance.choice(kinds)
            rolling.submit(request, GenerationOptions(**asked[request.row][1]), config={})
        if chance.random() < 0.03 and asked:
            ticket = chance.randrange(len(asked))
            cancelled |= {ticket} - set(results)
            rolling.cancel(ticket)
        for piece in rolling.step():
            assert piece.row not in results
            if piece.result is not None:
                results[piece.row] = piece.result
        if len(results) == 24:
            break
    assert sorted(results) == list(range(24))
    assert (rolling.num_waiting, rolling.num_running) == (0, 0)
    for ticket, (request, options) in asked.items():
        if ticket in cancelled:
            assert results[ticket].finish_reason == "cancelled"
            whole = alone(request, options)
            assert results[ticket].token_ids == whole.token_ids[: len(results[ticket].token_ids)]
        else:
            check_same(results[ticket], alone(request, options))


def finish(rolling: RollingBatch, max_steps: int = 500) -> tuple[dict[int, GenerationResult], list[list[Piece]]]:
    results, steps = {}, []
    for _ in range(max_steps):
        steps.append(rolling.step())
        results.update({piece.row: piece.result for piece in steps[-1] if piece.result})
        if not rolling.num_waiting and not rolling.num_running:
            return results, steps
    raise AssertionError("the batch did not come to an end")


def request(ticket: int, prompt: list[int], count: int = 8, **settings: Any) -> Request:
    limits = AnswerLimits(max_new_tokens=count, eos_token_ids=frozenset())
    return Request(row=ticket, prompt=prompt, settings=RowSettings(seed=ticket, **settings), limits=limits)


def test_a_long_prompt_does_not_hold_up_a_stream() -> None:
    rolling = batch(BatchRoom(max_rows=4, max_tokens=400, prefill_chunk=32))
    options = GenerationOptions(method="autoregressive")
    rolling.submit(request(0, [1, 2], 40), options, config={})
    rolling.step()
    rolling.submit(request(1, [3] * 300, 5), options, config={})
    steps = [[piece.row for piece in rolling.step()] for _ in range(12)]
    assert all(0 in rows for rows in steps)
    first = next(index for index, rows in enumerate(steps) if 1 in rows)
    assert first == 9, "299 tokens in chunks of 32, and the last chunk's step decodes already"


def test_a_short_prompt_overtakes_a_long_one() -> None:
    rolling = batch(BatchRoom(max_rows=4, max_tokens=500, prefill_chunk=64))
    options = GenerationOptions(method="autoregressive")
    rolling.submit(request(0, [3] * 400), options, config={})
    rolling.submit(request(1, [1] * 20), options, config={})
    _, steps = finish(rolling)
    order = [piece.row for pieces in steps for piece in pieces]
    assert order.index(1) < order.index(0)


def test_a_shared_beginning_is_read_once() -> None:
    target, draft = TableRunner(TABLES[0]), TableRunner(TABLES[1])
    rolling = batch(BatchRoom(max_rows=4, max_tokens=200, prefill_chunk=256), runners=(target, draft))
    options = GenerationOptions(gamma=2, beam_width=2)
    system = [1, 2, 3, 4] * 15
    for ticket in range(8):
        rolling.submit(request(ticket, [*system, ticket % 5, 3]), options, config={})
    results, _ = finish(rolling)
    reused = [results[ticket].stats.num_reused_prompt_tokens for ticket in range(8)]
    assert reused[0] == 0
    assert all(count >= len(system) for count in reused[1:])
    for ticket in range(8):
        alone_run = Run(*TABLES, {"method": "mmtad", "gamma": 2, "beam_width": 2})
        prompt = [*system, ticket % 5, 3]
        assert results[ticket].token_ids == alone_run.generate([prompt], [RowSettings(seed=ticket)], [8])[0].token_ids


def test_prompts_that_differ_reuse_nothing() -> None:
    rolling = batch(BatchRoom(max_rows=2, max_tokens=100, prefill_chunk=64))
    for ticket in range(3):
        rolling.submit(request(ticket, [ticket + 1] * 20), GenerationOptions(method="autoregressive"), config={})
    results, _ = finish(rolling)
    assert [results[ticket].stats.num_reused_prompt_tokens for ticket in range(3)] == [0, 0, 0]


def test_waiting_requests_are_served_in_order() -> None:
    rolling = batch(BatchRoom(max_rows=2, max_tokens=60, prefill_chunk=64))
    for ticket in range(10):
        rolling.submit(request(ticket, [1, ticket % VOCAB], 4), GenerationOptions(method="autoregressive"), config={})
    assert (rolling.num_waiting, rolling.num_running) == (10, 0)
    results, _ = finish(rolling)
    assert list(results) == list(range(10))


def test_cancelled_requests_end_in_the_next_step() -> None:
    rolling = batch(BatchRoom(max_rows=1, max_tokens=60, prefill_chunk=4))
    for ticket in range(3):
        rolling.submit(request(ticket, [1] * 9, 30), GenerationOptions(gamma=2, beam_width=2), config={})
    for _ in range(4):
        rolling.step()
    rolling.cancel(0)
    rolling.cancel(2)
    rolling.cancel(7)
    last = {piece.row: piece for piece in rolling.step() if piece.finish_reason}
    assert {row: piece.finish_reason for row, piece in last.items()} == {0: "cancelled", 2: "cancelled"}
    assert last[2].result is not None
    assert last[2].result.token_ids == ()
    rolling.step()
    assert (rolling.num_waiting, rolling.num_running) == (0, 1)
    rolling.cancel(1)
    rolling.cancel(1)
    assert [piece.finish_reason for piece in rolling.step()] == ["cancelled"]


@pytest.mark.parametrize("bias", [(), ((1, -2.0),)])
def test_translated_drafts_share_rows_like_others(bias: tuple[tuple[int, float], ...]) -> None:
    order = [3, 1, 0, 2, 5, 4]
    constraints = RowConstraints(logit_bias=bias)
    draft = TranslatedRunner(TableRunner(TABLES[1]), full_map(order))
    rolling = batch(BatchRoom(max_rows=3, max_tokens=60, prefill_chunk=8), runners=(TableRunner(TABLES[0]), draft))
    options: dict[str, Any] = {"method": "mmtad", "gamma": 3, "beam_width": 2}
    asked = [request(ticket, [ticket % VOCAB, 1, 2] * (1 + ticket % 3), constraints=constraints) for ticket in range(8)]
    for each in asked:
        rolling.submit(each, GenerationOptions(**options), config={})
    results, _ = finish(rolling)
    columns = torch.tensor(order)
    same_draft = TABLES[1][columns][:, columns][:, :, columns][..., columns]
    for each in asked:
        run = Run(TABLES[0], same_draft, options, is_constrained=bool(bias))
        (whole,) = run.generate([each.prompt], [each.settings], [each.limits.max_new_tokens])
        check_same(results[each.row], whole)


@pytest.mark.parametrize("method", ["beam_sampling", "dynamic_beam", "mtjd"])
def test_methods_with_a_decoder_of_their_own_are_refused(method: str) -> None:
    rolling = batch(BatchRoom())
    with pytest.raises(UnsupportedOperationError, match="does not share a batch"):
        rolling.submit(request(0, [1]), GenerationOptions(method=method, gamma=2, beam_width=2), config={})
    assert rolling.num_waiting == 0


def test_idle_decoders_are_forgotten() -> None:
    rolling = batch(BatchRoom(max_rows=2, max_tokens=60, prefill_chunk=64))
    for ticket in range(14):
        options = GenerationOptions(drafter="prompt_lookup", gamma=1 + ticket)
        rolling.submit(request(ticket, [1, 2], 3), options, config={})
        finish(rolling)
    assert len(rolling._shelf.decoders) <= 10


def test_explanations_tell_what_was_drafted_and_kept() -> None:
    rolling = batch(BatchRoom(max_rows=3, max_tokens=60, prefill_chunk=64))
    options = GenerationOptions(gamma=2, beam_width=2)
    rolling.submit(request(0, [1, 2], threshold=0.3), options, config={}, explains=True)
    rolling.submit(request(1, [1, 2]), options, config={})
    rolling.submit(request(2, [1, 2]), GenerationOptions(method="autoregressive"), config={}, explains=True)
    _, steps = finish(rolling)
    pieces = [piece for pieces in steps for piece in pieces]
    assert all(piece.step is None for piece in pieces if piece.row == 1)
    seen_kept = False
    for piece in (piece for piece in pieces if piece.row == 0):
        step = piece.step
        assert step is not None
        assert step.rule == "joint"
        assert step.threshold == pytest.approx(0.3)
        assert len(step.tokens) == 4
        assert step.depths == (1, 1, 2, 2)
        emitted = [*(step.tokens[node] for node in step.kept_path), step.next_token]
        assert tuple(emitted[: len(piece.token_ids)]) == piece.token_ids
        if step.kept_path:
            seen_kept = True
            assert step.joint_log_ratios[step.kept_path[-1]] > torch.tensor(0.3).log()
            assert [step.parents[node] for node in step.kept_path] == [-1, *step.kept_path[:-1]]
        assert [step.parents[node] for node in step.winner_path] == [-1, *step.winner_path[:-1]]
        assert len(step.winner_path) == 2
        for node in step.winner_path:
            own = step.joint_target_log_probs[node] - step.joint_draft_log_probs[node]
            assert step.joint_log_ratios[node] == pytest.approx(own, rel=1e-5)
    assert seen_kept
    alone_steps = [piece.step for piece in pieces if piece.row == 2]
    assert all(step is not None and step.tokens == () and step.rule == "target_only" for step in alone_steps)


def test_nothing_is_left_behind_by_many_requests() -> None:
    chance = random.Random(0)
    rolling = batch(BatchRoom(max_rows=4, max_tokens=80, prefill_chunk=16))
    sizes = []
    for wave in range(30):
        for number in range(10):
            ticket = 10 * wave + number
            rolling.submit(random_request(chance, ticket, chance.choice(CONSTRAINTS)), GenerationOptions(), config={})
        finish(rolling)
        rolling.step()
        assert (rolling.num_waiting, rolling.num_running, rolling.num_cached) == (0, 0, 0)
        sizes.append((rolling._shelf.cache_bytes, len(rolling._riding), len(rolling._shelf.decoders)))
    assert len(set(sizes[1:])) == 1


@pytest.fixture
def captured_pair(monkeypatch: pytest.MonkeyPatch) -> tuple[TransformersRunner, TransformersRunner]:
    runners = []
    for seed in range(2):
        runner = TransformersRunner(tiny_model(seed=seed))
        runner.attach()
        runners.append(runner)
    monkeypatch.setattr(TransformersRunner, "can_be_captured", True)
    return runners[0], runners[1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_kinds", [1, 3])
def test_captured_iterations_go_on_while_rows_come_and_go(
    captured_pair: tuple[TransformersRunner, TransformersRunner], num_kinds: int, seed: int
) -> None:
    kinds: list[dict[str, Any]] = [
        {"gamma": 2, "beam_width": 2},
        {"method": "speculative"},
        {"drafter": "prompt_lookup"},
    ]
    answers = []
    for cuda_graphs in ("off", "auto"):
        room = BatchRoom(max_rows=4 + seed % 2, max_tokens=80, prefill_chunk=16)
        rolling = batch(room, runners=captured_pair, machine=Machine(record_call))
        chance = random.Random(seed)
        results: dict[int, GenerationResult] = {}
        for ticket in range(20):
            options = GenerationOptions(cuda_graphs=cuda_graphs, **kinds[chance.randrange(num_kinds)])
            prompt = [*range(3, 3 + chance.choice([0, 9, 30])), *(chance.randrange(3, 60) for _ in range(3))]
            wanted = request(ticket, prompt, chance.randrange(2, 24), top_k=8, top_p=0.9)
            rolling.submit(wanted, options, config={}, explains=chance.random() < 0.1)
            if chance.random() < 0.1:
                rolling.cancel(chance.randrange(ticket + 1))
            for _ in range(chance.randrange(4)):
                results.update({piece.row: piece.result for piece in rolling.step() if piece.result})
        results.update(finish(rolling)[0])
        if cuda_graphs == "auto":
            loops = [decoder.loop for decoder in rolling._shelf.decoders]
            assert all(loop is not None and loop.refusal is None for loop in loops)
            counts = [loop.num_captures for loop in loops if loop is not None]
            assert sum(counts) >= 1
            assert num_kinds > 1 or counts[0] <= 8
        answers.append(results)
        rolling.close()
    for ticket, eager in answers[0].items():
        replayed = answers[1][ticket]
        if "cancelled" in (eager.finish_reason, replayed.finish_reason):
            # The host hears of replayed iterations one later, so they may be cancelled elsewhere.
            shorter, longer = sorted([eager.token_ids, replayed.token_ids], key=len)
            assert longer[: len(shorter)] == shorter
        else:
            check_same(replayed, eager)
