"""A pair of tiny random models in folders, for programs that look at everything but the text."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:?!'-=ABCDEFGHIJKL"
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def save_tiny_pair(folder: Path, max_positions: int = 1024) -> tuple[Path, Path]:
    """Write a target and a draft with a tokenizer of single characters; returns their folders."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", *CHARACTERS])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    target = LlamaForCausalLM(config)
    draft = LlamaForCausalLM(config)
    draft.load_state_dict({name: value + 0.04 * torch.randn_like(value) for name, value in target.state_dict().items()})
    folders = folder / "target", folder / "draft"
    for model, place in zip((target, draft), folders, strict=True):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return folders
