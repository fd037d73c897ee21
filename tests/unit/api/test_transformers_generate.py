"""`model.generate(..., custom_generate=mtad.custom_generate)` behaves as a plain transformers call."""

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import EOS, VOCAB_SIZE, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer

import mtad
from mtad.config import METHOD_NAMES
from mtad.errors import CapacityError, ConfigError, VocabularyMismatchError

PROMPT = torch.tensor([[5, 9, 33, 40, 7]])
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.95}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def draft() -> Any:
    return tiny_model("llama", seed=1)


def call(model: Any, draft: Any, inputs: Tensor = PROMPT, **changes: Any) -> Any:
    """A plain generate call; `changes` overrides its arguments."""
    arguments: dict[str, Any] = {
        "attention_mask": torch.ones_like(inputs),
        "assistant_model": draft,
        "custom_generate": mtad.custom_generate,
        "max_new_tokens": 12,
        "do_sample": False,
    }
    return model.generate(inputs, **(arguments | changes))


def pad_left(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


def answers(sequences: Tensor, prompt_length: int) -> list[list[int]]:
    """New tokens of every row without the fill after EOS."""
    rows = [row[prompt_length:].tolist() for row in sequences]
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("method", ["speculative", "autoregressive"])
def test_lossless_greedy_equals_stock_greedy(name: str, method: str) -> None:
    model, draft = tiny_model(name), tiny_model(name, seed=1)
    expected = call(model, None, custom_generate=None)
    assert torch.equal(call(model, draft, mtad_method=method), expected)


def test_the_assistant_model_reaches_the_draft(model: Any, draft: Any) -> None:
    by_argument = call(model, draft)
    by_name = call(model, None, draft_model=draft)
    bound = call(model, None, custom_generate=functools.partial(mtad.custom_generate, draft_model=draft))

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return mtad.custom_generate(*args, **kwargs)

    wrapped = call(model, draft, custom_generate=wrapper)
    assert torch.equal(by_argument, by_name)
    assert torch.equal(by_argument, bound)
    assert torch.equal(by_argument, wrapped)
    # A draft that always agrees with the target decodes other blocks than one that rarely does.
    assert not torch.equal(call(model, model), by_argument)


def test_the_target_as_its_own_draft_emits_the_best_beam(model: Any) -> None:
    block = call(model, model, gamma=3, beam_width=2, max_new_tokens=3, eos_token_id=None)
    beams = model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        num_beams=2,
        do_sample=False,
        max_new_tokens=3,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(block, beams)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("do_sample", [False, True])
def test_every_method_runs_and_repeats_under_one_seed(model: Any, draft: Any, method: str, do_sample: bool) -> None:
    settings = SAMPLING if do_sample else {}
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(call(model, draft, mtad_method=method, gamma=2, eos_token_id=None, **settings))
    assert runs[0].shape == (1, PROMPT.shape[1] + 12)
    assert torch.equal(runs[0][:, : PROMPT.shape[1]], PROMPT)
    assert torch.equal(runs[0], runs[1])
    if not do_sample:
        assert torch.equal(runs[0], runs[2])


def test_seeds_change_samples_and_greedy_leaves_the_generator_alone(model: Any, draft: Any) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    call(model, draft)
    assert torch.equal(torch.get_rng_state(), state)
    samples = {tuple(call(model, draft, draw="gumbel", **SAMPLING)[0].tolist()) for _ in range(4)}
    assert len(samples) > 1


@pytest.mark.parametrize("method", ["mmtad", "mtad", "speculative", "mtjd"])
def test_a_padded_batch_equals_single_prompts(model: Any, draft: Any, method: str) -> None:
    prompts = [[5, 9, 33, 40, 7], [8], [11, 12, 13]]
    rows, mask = pad_left(prompts)
    together = call(model, draft, rows, attention_mask=mask, mtad_method=method, gamma=3)
    assert torch.equal(together[:, : rows.shape[1]], rows)
    for prompt, answer in zip(prompts, answers(together, rows.shape[1]), strict=True):
        alone = call(model, draft, torch.tensor([prompt]), mtad_method=method, gamma=3)
        assert answer == answers(alone, len(prompt))[0]


def test_rows_are_filled_with_the_pad_token_after_eos(model: Any) -> None:
    prompts = [[token] for token in range(3, 40)]
    expected = call(model, None, torch.tensor(prompts), custom_generate=None, eos_token_id=[EOS, 17])
    got = call(
        model,
        None,
        torch.tensor(prompts),
        mtad_method="autoregressive",
        eos_token_id=[EOS, 17],
    )
    assert (expected == 0).any()
    assert torch.equal(got, expected)


def test_max_length_counts_the_prompt(model: Any, draft: Any) -> None:
    got = call(model, draft, max_new_tokens=None, max_length=PROMPT.shape[1] + 3, eos_token_id=None)
    assert got.shape[1] == PROMPT.shape[1] + 3


def test_a_generation_config_object_is_read(model: Any, draft: Any) -> None:
    config: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    got = model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        generation_config=config,
        assistant_model=draft,
        custom_generate=mtad.custom_generate,
    )
    assert got.shape[1] == PROMPT.shape[1] + 4


def test_several_answers_per_prompt(model: Any, draft: Any) -> None:
    got = call(model, None, draft_model=draft, num_return_sequences=3, draw="gumbel", eos_token_id=None, **SAMPLING)
    assert got.shape == (3, PROMPT.shape[1] + 12)
    assert len({tuple(row.tolist()) for row in got}) > 1


def test_a_dictionary_is_returned_on_request(model: Any, draft: Any) -> None:
    got = call(model, draft, return_dict_in_generate=True)
    assert torch.equal(got.sequences, call(model, draft))


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.is_ended = False

    def put(self, value: Tensor) -> None:
        self.tokens.extend(value.flatten().tolist())

    def end(self) -> None:
        self.is_ended = True


def test_a_streamer_gets_every_token(model: Any, draft: Any) -> None:
    streamer = Recorder()
    got = call(model, draft, streamer=streamer)
    assert streamer.tokens == got[0].tolist()
    assert streamer.is_ended
    with pytest.raises(ConfigError, match="streamer for 2 rows"):
        call(model, draft, PROMPT.repeat(2, 1), streamer=Recorder())


class EndsOn(StoppingCriteria):
    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self.tokens)


def test_other_stopping_criteria_end_their_rows(model: Any, draft: Any) -> None:
    rows = torch.tensor([[5, 9], [8, 7]])
    full = call(model, draft, rows, eos_token_id=None, pad_token_id=0)
    third = int(full[0, 4])
    got = call(
        model,
        draft,
        rows,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([EndsOn([third])]),
    )
    end = full[0, 2:].tolist().index(third) + 3
    assert got[0, :end].tolist() == full[0, :end].tolist()
    assert not got[0, end:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor"),
        ({"mtad_method": "mtjd", "repetition_penalty": 1.3}, "mtjd takes no penalties"),
        ({"assistant_model": None, "num_beams": 2}, "beam_width"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"assistant_model": None}, "assistant_model"),
        ({"mtad_method": "quick"}, "must be one of"),
        ({"gamma": 0}, "gamma"),
        ({"gamma": 16, "beam_width": 16}, "gamma"),
        ({"threshold": 2.0}, "threshold"),
        ({"position_ids": torch.arange(5)[None] + 3}, "position_ids"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(model: Any, draft: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(model, draft, **changes)


def only_even(batch_row: int, token_ids: Tensor) -> list[int]:
    return [token for token in range(3, VOCAB_SIZE) if token % 2 == batch_row % 2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.5},
        {"min_new_tokens": 10, "eos_token_id": [EOS, 40]},
        {"bad_words_ids": [[49], [40, 43]]},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [5, 6, 7, 40]},
        {"sequence_bias": {(8,): 9.0}, "repetition_penalty": 1.2},
        {"exponential_decay_length_penalty": (3, 1.5), "renormalize_logits": True},
        {"forced_eos_token_id": EOS},
        {"prefix_allowed_tokens_fn": only_even},
        {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4, 2)])},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("method", ["speculative", "autoregressive"])
def test_greedy_under_logits_processors_equals_stock_greedy(
    model: Any, draft: Any, arguments: dict[str, Any], method: str
) -> None:
    rows, mask = pad_left([[5, 9, 33, 40, 7], [8], [11, 12, 13]])
    eos = arguments.get("eos_token_id", EOS)
    plain = call(model, None, rows, attention_mask=mask, custom_generate=None, eos_token_id=eos)
    expected = call(model, None, rows, attention_mask=mask, custom_generate=None, **arguments)
    assert expected.shape != plain.shape or not torch.equal(expected, plain)
    got = call(model, draft, rows, attention_mask=mask, mtad_method=method, gamma=3, **arguments)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_p": 0.2},
        {"typical_p": 0.5},
        {"epsilon_cutoff": 0.05, "repetition_penalty": 1.2},
        {"logits_processor": LogitsProcessorList([TopPLogitsWarper(0.5)])},
    ],
    ids="-".join,
)
def test_sampling_under_processors_stays_inside_their_support(
    model: Any, draft: Any, arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    got = call(model, draft, mtad_method="speculative", gamma=2, eos_token_id=None, **SAMPLING, **arguments)
    for end in range(PROMPT.shape[1], got.shape[1]):
        stock = call(
            model,
            None,
            got[:, :end],
            custom_generate=None,
            max_new_tokens=1,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
            **SAMPLING,
            **arguments,
        )
        assert stock.scores[0][0, got[0, end]] > -torch.inf


def test_token_types_other_than_zero_are_an_error() -> None:
    model = tiny_model("gpt2")
    expected = call(model, model)
    assert torch.equal(call(model, model, token_type_ids=torch.zeros_like(PROMPT)), expected)
    with pytest.raises(ConfigError, match="token_type_ids"):
        call(model, model, token_type_ids=torch.ones_like(PROMPT))


def test_models_that_do_not_fit_are_refused(model: Any) -> None:
    with pytest.raises(VocabularyMismatchError, match=r"draft with 700 tokens.*draft_tokenizer="):
        call(model, None, draft_model=tiny_model("llama", vocab_size=700))
    with pytest.raises(CapacityError, match="has 128; lower max_new_tokens"):
        call(model, model, max_new_tokens=130)


def test_a_draft_with_other_ids_drafts_through_both_tokenizers(model: Any, draft: Any) -> None:
    order = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    shuffled = tiny_model("llama", seed=1)
    with torch.no_grad():
        for weight in (shuffled.get_input_embeddings().weight, shuffled.get_output_embeddings().weight):
            weight[order] = weight.clone()
    renamed = {token: int(order[index]) for token, index in tiny_tokenizer().get_vocab().items()}
    tokenizers = {
        "target_tokenizer": tiny_tokenizer(),
        "draft_tokenizer": PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=Tokenizer(BPE(vocab=renamed, merges=[])),
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
        ),
    }
    for method in ("mmtad", "speculative"):
        torch.manual_seed(2)
        expected = call(model, draft, mtad_method=method, **SAMPLING)
        torch.manual_seed(2)
        got = call(model, shuffled, mtad_method=method, **SAMPLING, **tokenizers)
        assert torch.equal(got, expected)
    same = {"target_tokenizer": tiny_tokenizer(), "draft_tokenizer": tiny_tokenizer()}
    assert torch.equal(call(model, draft, **same), call(model, draft))
    with pytest.raises(ConfigError, match="got draft_tokenizer alone"):
        call(model, draft, draft_tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_models_own_attention_comes_back(name: str) -> None:
    model, draft = tiny_model(name), tiny_model("llama", seed=1)
    before = model.config._attn_implementation
    expected = model(PROMPT).logits
    call(model, draft)
    assert (model.config._attn_implementation, draft.config._attn_implementation) == (before, "sdpa")
    assert torch.equal(model(PROMPT).logits, expected)

    class Failing(Recorder):
        def put(self, value: Tensor) -> None:
            if self.tokens:
                raise RuntimeError("the reader has gone")
            super().put(value)

    with pytest.raises(RuntimeError, match="the reader has gone"):
        call(model, draft, streamer=Failing())
    assert (model.config._attn_implementation, draft.config._attn_implementation) == (before, "sdpa")


def test_a_padded_vocabulary_of_the_draft_is_cut(model: Any) -> None:
    wide = tiny_model("llama", seed=1, vocab_size=VOCAB_SIZE + 3)
    assert int(call(model, None, draft_model=wide).max()) < VOCAB_SIZE
