"""A byte-level tokenizer of single characters that can write JSON, as wide as the tiny models."""

from typing import Any

from tests.tiny_engine import SPECIAL_TOKENS
from tests.tiny_models import VOCAB_SIZE
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

CHARACTERS = 'abcdefghijklmnopqrstuvwxyz0123456789 \n.,:?!-=+{}[]"\\'
MERGES = (("a", "b"), ('"', ":"), ("{", '"'))


def byte_tokenizer() -> Any:
    """One token per character and a few of two; ids behind them are padding of the model's width."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [level.pre_tokenize_str(character)[0][0] for character in CHARACTERS]
    tokens = [*SPECIAL_TOKENS, *letters, *("".join(pair) for pair in MERGES)]
    assert len(tokens) < VOCAB_SIZE
    backend = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=list(MERGES)))
    backend.pre_tokenizer = level
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
