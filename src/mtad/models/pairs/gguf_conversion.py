"""Converting the GGUF file of a Llama model into a bfloat16 Hugging Face folder.

The file is read directly, because loading it through transformers (5.23) drops the pre-tokenizer: SmolLM2 splits off
each digit before anything else, without which a numbered list gets other tokens than the model was trained on.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, TokenType, dequantize, get_tensor_name_map
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mtad.errors import PairDownloadError
from mtad.models.pairs.packed_draft import WEIGHTS_NAME
from mtad.models.pairs.reporting import Reporter

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast


def convert_gguf(gguf_path: Path, folder: Path, reporter: Reporter) -> None:
    """Writes weights, configuration and tokenizer of a Llama model to the new folder `folder`.

    Raises:
        PairDownloadError: The file holds another architecture or other tensors than a Llama model has.
    """
    from transformers import GenerationConfig

    reader = GGUFReader(gguf_path)
    if (architecture := _value(reader, "general.architecture")) != "llama":
        raise PairDownloadError(f"got the architecture {architecture!r} in {gguf_path.name}, expected 'llama'")
    config = read_config(reader)
    folder.mkdir()
    save_file(read_weights(reader, config, reporter), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(folder)
    special_ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**special_ids).save_pretrained(folder)  # type: ignore[no-untyped-call]
    read_tokenizer(reader).save_pretrained(folder)


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise PairDownloadError(f"got a GGUF file without {key!r}, expected a Llama model with its tokenizer")
    return field.contents()


def read_config(reader: GGUFReader) -> "LlamaConfig":
    """Returns the configuration of the Llama model in a GGUF file."""
    from transformers import LlamaConfig

    num_heads = _value(reader, "llama.attention.head_count")
    # Stored as float32: its shortest decimal is the number that was meant.
    rms_norm_eps = float(str(np.float32(_value(reader, "llama.attention.layer_norm_rms_epsilon"))))
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=_value(reader, "llama.vocab_size"),
        hidden_size=_value(reader, "llama.embedding_length"),
        intermediate_size=_value(reader, "llama.feed_forward_length"),
        num_hidden_layers=_value(reader, "llama.block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=_value(reader, "llama.attention.head_count_kv"),
        head_dim=_value(reader, "llama.embedding_length") // num_heads,
        max_position_embeddings=_value(reader, "llama.context_length"),
        rms_norm_eps=rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": _value(reader, "llama.rope.freq_base")},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        bos_token_id=_value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_value(reader, "tokenizer.ggml.padding_token_id"),
        dtype="bfloat16",
    )


def read_weights(reader: GGUFReader, config: "LlamaConfig", reporter: Reporter) -> dict[str, torch.Tensor]:
    """Returns the bfloat16 tensors of a Llama model under their Hugging Face names; a tied head is left out.

    Raises:
        PairDownloadError: A tensor is missing, has another shape, or is unknown.
    """
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights: dict[str, torch.Tensor] = {}
    with reporter.bar("converting", len(shapes), "tensor") as bar:
        for name, shape in shapes.items():
            tensor = stored.pop(f"{names.get_name(name.removesuffix('.weight'))}.weight", None)
            if tensor is None or tuple(map(int, reversed(tensor.shape))) != shape:
                raise PairDownloadError(f"got no {name} of shape {shape} in the GGUF file, expected a Llama model")
            weights[name] = torch.from_numpy(
                _restore_rotary_order(dequantize(tensor.data, tensor.tensor_type), name, config)
            ).bfloat16()
            bar.update()
    if unknown := sorted(stored.keys() - {"rope_freqs.weight"}):
        raise PairDownloadError(f"got the tensors {', '.join(unknown)} in the GGUF file, expected a Llama model")
    return weights


def _restore_rotary_order(weight: np.ndarray, name: str, config: "LlamaConfig") -> np.ndarray:
    """GGUF interleaves the two halves of each query and key head's rotary dimensions; Hugging Face keeps them apart."""
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    num_heads = heads.get(".".join(name.split(".")[-2:]))
    if num_heads is None:
        return weight.copy()
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def read_tokenizer(reader: GGUFReader) -> "PreTrainedTokenizerFast":
    """Returns the byte-level BPE tokenizer of a SmolLM2 file, with its chat template.

    Raises:
        PairDownloadError: The file names another pre-tokenizer than SmolLM2's.
    """
    from transformers import PreTrainedTokenizerFast

    if (name := _value(reader, "tokenizer.ggml.pre")) != "smollm":
        raise PairDownloadError(f"got the pre-tokenizer {name!r} in the GGUF file, expected 'smollm'")
    tokens = _value(reader, "tokenizer.ggml.tokens")
    kinds = _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL])

    def special(key: str) -> str:
        return str(tokens[_value(reader, f"tokenizer.ggml.{key}_token_id")])

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=special("bos"),
        eos_token=special("eos"),
        unk_token=special("unknown"),
        pad_token=special("padding"),
        chat_template=_value(reader, "tokenizer.chat_template"),
        model_max_length=_value(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
