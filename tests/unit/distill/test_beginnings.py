"""Drafts begin as they were told."""

from pathlib import Path

import pytest
import torch
from tests.tiny_models import tiny_model

from mtad.distill.beginnings import begin_draft, principal_components
from mtad.distill.shapes import DraftShape
from mtad.errors import ConfigError, UnsupportedModelError


def test_principal_components_keep_the_geometry_that_fits() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(50, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    found = principal_components(flat, 3)
    centred = flat - flat.mean(0)
    expected, kept = centred @ centred.T, found @ found.T
    torch.testing.assert_close(kept / kept.norm(), expected / expected.norm(), atol=1e-5, rtol=1e-4)
    assert torch.equal(principal_components(flat, 12)[:, 8:], torch.zeros(50, 4))


def test_all_layers_of_the_target_are_the_target() -> None:
    target = tiny_model("llama", dtype=torch.float32)
    draft = begin_draft(DraftShape("32x2", 32, 2), target, "layers", 0)
    tokens = torch.arange(9).unsqueeze(0)
    torch.testing.assert_close(draft(input_ids=tokens).logits, target(input_ids=tokens).logits)


def test_chosen_layers_are_the_first_and_the_last() -> None:
    target = tiny_model("qwen3", dtype=torch.float32, num_hidden_layers=5)
    draft = begin_draft(DraftShape("32x2", 32, 2), target, "layers", 0)
    for index, source in enumerate((0, 4)):
        found, expected = (
            model.model.layers[place].mlp.up_proj.weight for model, place in ((draft, index), (target, source))
        )
        assert torch.equal(found, expected)


def test_a_folder_is_gone_on_with(tmp_path: Path) -> None:
    old = tiny_model("llama", seed=3, dtype=torch.float32)
    old.save_pretrained(tmp_path / "old")
    draft = begin_draft(DraftShape("small", 256, 4), tiny_model("llama"), str(tmp_path / "old"), 0)
    assert torch.equal(draft.model.embed_tokens.weight.float(), old.model.embed_tokens.weight)
    tiny_model("llama", vocab_size=70).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="vocabulary of 70, expected the target's 61; use --init pca"):
        begin_draft(DraftShape("small", 256, 4), tiny_model("llama"), str(tmp_path / "other"), 0)
    with pytest.raises(ConfigError, match="init must be pca, layers, random or the folder"):
        begin_draft(DraftShape("small", 256, 4), tiny_model("llama"), "pac", 0)


def test_the_seed_decides_what_is_random() -> None:
    target, shape = tiny_model("llama"), DraftShape("32x1", 32, 1)
    one, two, other = (begin_draft(shape, target, "random", seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_logits_that_are_more_than_a_product_are_refused() -> None:
    target = tiny_model("gemma2", dtype=torch.float32, final_logit_softcapping=1.0)
    with pytest.raises(UnsupportedModelError, match=r"gemma2 whose logits are more than a product.*--init pca"):
        begin_draft(DraftShape("32x2", 32, 2), target, "layers", 0)
