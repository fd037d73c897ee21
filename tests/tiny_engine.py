"""An engine small enough for unit tests: random float64 models and a tokenizer of single characters."""

from typing import Any

import torch
from tests.tiny_models import EOS, VOCAB_SIZE, tiny_model
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mtad.api import Engine
from mtad.config import ModelOptions
from mtad.models.loading import LoadedModels, SamplingDefaults
from mtad.models.transformers_runner import TransformersRunner

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:?!'-=ABCDEFGHIJKL"
MAX_POSITIONS = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_tokenizer(*, has_template: bool = True) -> Any:
    """One token per character, `VOCAB_SIZE` in all."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}
    assert len(vocabulary) == VOCAB_SIZE
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE if has_template else None
    return tokenizer


def tiny_engine(
    *,
    has_draft: bool = True,
    has_template: bool = True,
    defaults: SamplingDefaults | None = None,
    max_positions: int = MAX_POSITIONS,
) -> Engine:
    """An engine whose draft is its target with a little noise, so that drafts are kept and refused."""
    target = tiny_model("llama", max_position_embeddings=max_positions)
    draft = tiny_model("llama", max_position_embeddings=max_positions)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=0.04)
    models = LoadedModels(
        target=_serve(target),
        draft=_serve(draft) if has_draft else None,
        tokenizer=tiny_tokenizer(has_template=has_template),
        defaults=defaults or SamplingDefaults(eos_token_ids=frozenset({EOS})),
        options=ModelOptions(target="tiny", draft="tiny-draft", device="cpu", dtype="float64"),
    )
    return Engine(models)


def _serve(model: Any) -> TransformersRunner:
    runner = TransformersRunner(model)
    runner.attach()
    return runner
