"""Folders become a pair of runners, and every unusable folder becomes one sentence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from mtad.config import ModelOptions
from mtad.errors import CapacityError, ConfigError, ModelLoadError, UnsupportedModelError, VocabularyMismatchError
from mtad.models.int8_linear import Int8Linear
from mtad.models.loading import load_models
from mtad.models.placement import choose_device, choose_dtype
from mtad.models.scoring import score_sequences
from mtad.models.transformers_runner import TransformersRunner
from mtad.models.translated_runner import TranslatedRunner


def save_tokenizer(folder: Path, words: list[str]) -> None:
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )
    tokenizer.save_pretrained(folder)


def words(count: int = VOCAB_SIZE) -> list[str]:
    return ["<pad>", "<bos>", "<eos>", *[f"word{index}" for index in range(3, count)]]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder, words())
    return folder


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    folder = tmp_path / "draft"
    tiny_model("llama", seed=1, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def load(target: Path, draft: Path | None = None, **options: Any) -> Any:
    options = {"device": "cpu"} | options
    return load_models(ModelOptions(target=str(target), draft=None if draft is None else str(draft), **options))


def test_a_pair_is_loaded_and_its_options_are_resolved(
    target: Path, draft: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = transformers_logging.get_verbosity()
    models = load(target, draft, dtype="float32")
    assert models.options == ModelOptions(target=str(target), draft=str(draft), device="cpu", dtype="float32")
    assert models.target.model.dtype == models.draft.model.dtype == torch.float32
    assert models.tokenizer.convert_ids_to_tokens(5) == "word5"
    assert models.defaults.eos_token_ids == {2}
    assert models.defaults.temperature is None
    assert transformers_logging.get_verbosity() == verbosity
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


def test_the_draft_is_left_out_when_nobody_wants_it(target: Path, draft: Path) -> None:
    options = ModelOptions(target=str(target), draft=str(draft), device="cpu")
    assert load_models(options, wants_draft=False).draft is None
    asked = replace(options, match_vocabularies="intersection")
    assert load_models(asked, wants_draft=False).options.match_vocabularies == "intersection"
    assert load(target).draft is None


def test_sampling_defaults_come_from_the_generation_config(target: Path) -> None:
    stated = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True, "eos_token_id": [2, 7]}
    (target / "generation_config.json").write_text(json.dumps(stated))
    defaults = load(target).defaults
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (0.6, 20, 0.95)
    assert defaults.eos_token_ids == {2, 7}


def test_equal_tokenizers_with_padded_widths_use_the_smaller(target: Path, tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    tiny_model("llama", seed=1, vocab_size=VOCAB_SIZE + 3).save_pretrained(padded)
    save_tokenizer(padded, words())
    models = load(target, padded)
    assert models.target.vocab_size == models.draft.vocab_size == VOCAB_SIZE


def test_a_swapped_token_is_named_with_both_readings(target: Path, draft: Path) -> None:
    changed = words()
    changed[9], changed[11] = changed[11], changed[9]
    save_tokenizer(draft, changed)
    with pytest.raises(VocabularyMismatchError, match=r"id 9 is 'word9' for the target and 'word11' for the draft"):
        load(target, draft)


def test_the_refusal_of_another_vocabulary_says_what_is_shared(target: Path, draft: Path) -> None:
    changed = [*words()[:30], *[f"other{index}" for index in range(31)]]
    save_tokenizer(draft, changed)
    shared = r"or use --match-vocabularies intersection to draft .*: 30 of the target's 61 tokens$"
    with pytest.raises(VocabularyMismatchError, match=shared):
        load(target, draft)
    save_tokenizer(draft, ["<pad>", *[f"other{index}" for index in range(60)]])
    with pytest.raises(VocabularyMismatchError, match=r"use a draft made for this target$"):
        load(target, draft)


def test_another_vocabulary_is_translated_on_request(target: Path, draft: Path) -> None:
    changed = words()[::-1]
    changed[20] = "unheard"
    save_tokenizer(draft, changed)
    models = load(target, draft, match_vocabularies="intersection")
    assert isinstance(models.draft, TranslatedRunner)
    assert models.target.vocab_size == models.draft.vocab_size == VOCAB_SIZE
    assert models.vocabulary.num_shared == VOCAB_SIZE - 1
    assert models.vocabulary.draft_ids[:5].tolist() == [60, 59, 58, 57, 56]
    assert models.vocabulary.draft_ids[40] == -1
    assert models.options.match_vocabularies == "intersection"


def test_a_translated_draft_may_have_any_width(target: Path, tmp_path: Path) -> None:
    for width in (VOCAB_SIZE - 20, VOCAB_SIZE + 20):
        other = tmp_path / str(width)
        tiny_model("llama", vocab_size=width).save_pretrained(other)
        save_tokenizer(other, words(VOCAB_SIZE + 30))
        models = load(target, other, match_vocabularies="intersection")
        assert models.vocabulary.num_shared == min(width, VOCAB_SIZE)


def test_an_equal_vocabulary_needs_no_translation(target: Path, tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    tiny_model("llama", seed=1, vocab_size=VOCAB_SIZE + 3).save_pretrained(padded)
    save_tokenizer(padded, words())
    models = load(target, padded, match_vocabularies="intersection")
    assert isinstance(models.draft, TransformersRunner)
    assert models.target.vocab_size == models.draft.vocab_size == VOCAB_SIZE
    assert models.vocabulary is None
    assert models.options.match_vocabularies == "exact"


def test_vocabularies_that_cannot_be_matched_are_refused(target: Path, draft: Path) -> None:
    with pytest.raises(VocabularyMismatchError, match=r"without tokenizer files, expected its own .*, or leave out"):
        load(target, draft, match_vocabularies="intersection")
    save_tokenizer(draft, ["<pad>", *[f"other{index}" for index in range(60)]])
    with pytest.raises(VocabularyMismatchError, match="has only 1 of the target's 61 tokens, expected at least 5%"):
        load(target, draft, match_vocabularies="intersection")
    with pytest.raises(ConfigError, match="match_vocabularies must be one of exact, intersection, got 'some'"):
        load(target, draft, match_vocabularies="some")


def test_a_missing_token_is_named(target: Path, draft: Path) -> None:
    save_tokenizer(draft, words(VOCAB_SIZE - 1))
    with pytest.raises(VocabularyMismatchError, match=r"id 60 is 'word60' for the target and nothing for the draft"):
        load(target, draft)


@pytest.mark.parametrize("width", [VOCAB_SIZE - 1, VOCAB_SIZE + 1])
def test_a_draft_without_a_tokenizer_must_have_the_targets_width(target: Path, tmp_path: Path, width: int) -> None:
    other = tmp_path / "other"
    tiny_model("llama", vocab_size=width).save_pretrained(other)
    with pytest.raises(VocabularyMismatchError, match=f"draft with {width} tokens"):
        load(target, other)


def remove_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def take_weights(folder: Path, name: str, **changes: Any) -> None:
    tiny_model(name, **changes).save_pretrained(folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder / "model.safetensors")


def truncate(path: Path, lost_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-lost_bytes])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "malformed config": lambda folder: (folder / "config.json").write_text("{"),
    "unknown type": lambda folder: (folder / "config.json").write_text('{"model_type": "no_such_type"}'),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "truncated": lambda folder: truncate(folder / "model.safetensors", 1000),
    "empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "missing shard": remove_shard,
    "other weights": lambda folder: take_weights(folder, "gpt2"),
    "other shapes": lambda folder: take_weights(folder, "llama", intermediate_size=40),
    "pickled": pickle_weights,
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "malformed tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "adapter": lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no config", r"without a config\.json, expected a target model"),
        ("malformed config", "cannot be used"),
        ("unknown type", "no_such_type"),
        ("no weights", r"without weights, expected model\.safetensors"),
        ("truncated", "cannot be used"),
        ("empty", "cannot be used"),
        ("missing shard", r"without model-00001-of-00002\.safetensors"),
        ("other weights", "of its weights"),
        ("other shapes", r"has shape .* expected .* by its config\.json"),
        ("pickled", "without weights in safetensors format"),
        ("no tokenizer", "without tokenizer files"),
        ("malformed tokenizer", "tokenizer"),
        ("adapter", "--adapter"),
    ],
)
def test_an_unusable_folder_is_one_sentence(target: Path, kind: str, message: str) -> None:
    DAMAGES[kind](target)
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(target)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_names_that_lead_nowhere(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match="neither a local folder nor a hub model") as caught:
        load_models(ModelOptions(target="no-such-owner/no-such-model", device="cpu"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelLoadError, match="draft"):
        load_models(ModelOptions(target=str(target), draft="no-such-owner/no-such-model", device="cpu"))


@pytest.mark.parametrize(("model_type", "message"), [("t5", "encoder-decoder"), ("vit", "causal language model")])
def test_other_kinds_of_models_are_refused(target: Path, model_type: str, message: str) -> None:
    (target / "config.json").write_text(json.dumps({"model_type": model_type}))
    expected = UnsupportedModelError if model_type == "t5" else ModelLoadError
    with pytest.raises(expected, match=message):
        load(target)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")]
)
def test_exhausted_memory_is_a_capacity_error(target: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(CapacityError, match="--dtype"):
        load(target)


def test_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True}, raising=False)
        assert choose_dtype("auto", torch.bfloat16, cpu) is torch.bfloat16
        assert choose_dtype("auto", torch.float32, cpu) is torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_dtype("auto", torch.bfloat16, cpu) is torch.float32
    assert choose_dtype("auto", torch.bfloat16, torch.device("cuda")) is torch.bfloat16
    assert choose_dtype("float16", torch.bfloat16, cpu) is torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == cpu
    with pytest.raises(ModelLoadError, match="--device cpu"):
        choose_device("cuda:7")
    for name in ("gpu", "meta", "mps"):
        with pytest.raises(ConfigError, match="cuda:N"):
            choose_device(name)


def test_a_device_map_is_passed_on_or_refused(target: Path) -> None:
    assert load(target, device_map="auto").options.device_map == "auto"
    with pytest.raises(ConfigError, match="balanced"):
        load(target, device_map="everywhere")


def scored(models: Any, which: str = "target") -> torch.Tensor:
    sequence = [[1, 5, 7, 3, 9, 11, 4]]
    return torch.tensor(score_sequences(getattr(models, which), sequence)[0].log_probs)


@pytest.mark.parametrize("changes", [{}, {"target_shape": "llama-68m"}], ids=["as it is", "cost twin"])
def test_eight_bits_are_close_to_full_weights(target: Path, draft: Path, changes: dict[str, str]) -> None:
    plain, int8 = load(target, draft, dtype="float32"), load(target, draft, quantization="int8", **changes)
    assert int8.options.quantization == "int8"
    for which in ("target", "draft"):
        runner = getattr(int8, which)
        assert any(isinstance(module, Int8Linear) for module in runner.model.modules())
        assert not any(type(module) is nn.Linear for module in runner.model.modules())
        difference = (scored(int8, which) - scored(plain, which)).abs()
        assert 0 < difference.max() < 0.5


def test_untested_types_are_probed_before_weights_are_rounded(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[int] = []

    def probe(runner: TransformersRunner) -> None:
        probed.append(sum(type(module) is nn.Linear for module in runner.model.modules()))

    monkeypatch.setattr("mtad.models.loading.TESTED_MODEL_TYPES", frozenset())
    monkeypatch.setattr("mtad.models.loading.check_tree_logits", probe)
    load(target, quantization="int8")
    assert probed == [15]


def test_eight_bits_are_refused_where_they_cannot_be(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="quantization must be one of none, int8, got 'int3'"):
        load(target, quantization="int3")
    with pytest.raises(ConfigError, match="8-bit weights lie on the CPU alone, got device_map auto"):
        load(target, quantization="int8", device_map="auto")
    monkeypatch.setattr("mtad.models.loading.choose_device", lambda name: torch.device("cuda", 0))
    with pytest.raises(ConfigError, match="8-bit weights are for the CPU, got quantization int8 on cuda:0"):
        load(target, quantization="int8", device="cuda")
