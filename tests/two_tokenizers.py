"""Two real tokenizers that spell spaces and bytes in different ways and know different words."""

import json
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TARGET_CORPUS = [
    "the cat sat on the mat and the dog sat on the cat",
    "a model drafts tokens and another model keeps the tokens",
    "déjà vu: the naïve café on the corner, the café of the town",
]
DRAFT_CORPUS = [
    "the cat ran to the town and the dog ran to the river",
    "a draft keeps the model busy and the model keeps the draft",
    "the corner of the town is the corner of the café",
]
VOCABULARY = 400


def byte_level_tokenizer() -> Any:
    """Byte-level BPE as in GPT-2: `Ġ` for a space, a letter for every byte; chat-like special tokens."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|start|>", "<|end|>", "<|tool|>", "<|only here|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TARGET_CORPUS, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>"
    )


def metaspace_tokenizer() -> Any:
    """BPE as in Llama 2: `▁` for a space, `<0xC3>` for a byte; its special tokens have the usual names."""
    backend = Tokenizer(BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    specials = ["<unk>", "<s>", "</s>", "<|tool|>"]
    trainer = BpeTrainer(vocab_size=VOCABULARY - 256, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(DRAFT_CORPUS, trainer)
    described = json.loads(backend.to_str())
    vocabulary = described["model"]["vocab"]
    # The bytes come behind, so that ids of words and bytes are mixed differently in the two vocabularies.
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    described["model"] |= {"vocab": vocabulary, "byte_fallback": True}
    backend = Tokenizer.from_str(json.dumps(described))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
