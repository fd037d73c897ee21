from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tests.tiny_pairs import CHAT_TEMPLATE, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtad.errors import PairDownloadError
from mtad.models.pairs.gguf_conversion import convert_gguf, read_tokenizer
from mtad.models.pairs.reporting import Reporter

SILENT = Reporter(is_enabled=False)


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="module")
def converted(gguf_path: Path) -> Path:
    folder = gguf_path.parent / "converted"
    convert_gguf(gguf_path, folder, SILENT)
    return folder


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Any:
    return AutoTokenizer.from_pretrained(converted)


def test_weights_are_those_that_transformers_reads(gguf_path: Path, converted: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(converted, dtype="auto")
    assert model.dtype == torch.bfloat16
    weights = model.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(weights[name], weight.bfloat16()), name


def test_the_configuration_is_kept(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.config.rms_norm_eps == 1e-5
    assert model.config.rope_parameters["rope_theta"] == 10_000.0
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2


def test_digits_are_split_off_before_anything_else(tokenizer: Any) -> None:
    assert tokenizer.tokenize("\n\n12  3") == ["ĊĊ", "1", "2", "ĠĠ", "3"]


@pytest.mark.parametrize(
    "text", ["hi", " two  spaces\n\n\ttab", "1234", "ünïcödé 漢字 😀", "<|im_start|>hi<|im_end|>", ""]
)
def test_text_survives_encoding_and_decoding(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_and_chat_template_are_kept(tokenizer: Any) -> None:
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.model_max_length == 128


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", architecture="qwen2")
    with pytest.raises(PairDownloadError, match="got the architecture 'qwen2'"):
        convert_gguf(tmp_path / "other.gguf", tmp_path / "out", SILENT)


def test_another_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", pre_tokenizer="qwen2")
    with pytest.raises(PairDownloadError, match="got the pre-tokenizer 'qwen2'"):
        read_tokenizer(GGUFReader(tmp_path / "other.gguf"))
