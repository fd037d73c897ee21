"""Every answer says what the caches of its batch took."""

import torch
from tests.tiny_models import EOS, tiny_model

from mtad.config import GenerationOptions
from mtad.decoding import AnswerLimits, Request, RunFacts, build_decoder, generate_pieces
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import RowSettings


def _runner(seed: int) -> TransformersRunner:
    runner = TransformersRunner(tiny_model(seed=seed, dtype=torch.float32))
    runner.attach()
    return runner


def test_the_bytes_of_both_caches_are_reported() -> None:
    target, draft = _runner(0), _runner(1)
    decoder = build_decoder(GenerationOptions(gamma=2, beam_width=2), target, draft, frozenset({EOS}), temperature=1.0)
    limits = AnswerLimits(max_new_tokens=6, eos_token_ids=frozenset())
    requests = [Request(row=row, prompt=[5, 6, 7], settings=RowSettings(), limits=limits) for row in range(2)]
    pieces = generate_pieces(decoder, requests, lambda token_ids: "", RunFacts(method="mmtad"))
    sizes = [piece.result.stats.cache_bytes for piece in pieces if piece.result]
    # 2 layers of keys and values, 2 rows, 2 key heads of width 8, 4 bytes a number.
    assert sizes == [2 * 2 * 2 * 2 * 8 * 4 * (target.num_slots + draft.num_slots)] * 2
