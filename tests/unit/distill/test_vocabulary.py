"""Drafts with some of the target's tokens and thin heads: they train, are written, and load without a word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import tiny_model
from tests.unit.distill.conftest import model_options, quick_options, silent
from transformers import AutoModelForCausalLM

from mtad.api import Engine
from mtad.distill.beginnings import begin_draft
from mtad.distill.losses import fused_loss
from mtad.distill.pairing import load_pair
from mtad.distill.pipeline import Distillation
from mtad.distill.shapes import DraftShape
from mtad.distill.store import Text, TextStore
from mtad.distill.vocabulary import choose_vocabulary
from mtad.distill.work import WorkFolder
from mtad.errors import ConfigError, DistillError, ModelLoadError, VocabularyMismatchError
from mtad.models.loading import LoadedModels, load_models
from mtad.models.low_rank_head import HEAD_FILE, split_head
from mtad.models.trimmed_vocabulary import VOCABULARY_FILE, kept_tokens, trim_vocabulary

KEPT = [0, 1, 2, 5, 6, 7, 9, 12, 20, 21, 22, 30, 31, 40, 41, 42, 50]
SHAPE = DraftShape("32x1", 32, 1)


def test_the_tokens_are_the_special_and_the_most_frequent(models: LoadedModels, tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.open({})
    store = TextStore(work, 61)
    store.append([Text([40] * 3 + [50] * 2 + [13] * 4 + [14], 1)], 0.1)
    found = choose_vocabulary(models, store.open(), 7)
    assert kept_tokens(found).tolist() == [0, 1, 2, 13, 14, 40, 50]
    assert found.draft_ids[[0, 13, 50, 49]].tolist() == [0, 3, 6, -1]
    assert kept_tokens(choose_vocabulary(models, None, 7)).tolist() == [0, 1, 2, 3, 4, 5, 6]
    for count in (3, 61):
        with pytest.raises(DistillError, match=rf"got --vocab {count}, expected more than the 3 special.*leave it out"):
            choose_vocabulary(models, None, count)


def test_a_tokenizer_without_meanings_cannot_be_trimmed(models: LoadedModels) -> None:
    class Slow:
        is_fast = False
        all_special_ids = (0,)

    with pytest.raises(DistillError, match=r"--vocab needs to know what .* stand for: got a Slow"):
        choose_vocabulary(replace(models, tokenizer=Slow()), None, 20)


def test_a_trimmed_draft_says_what_the_whole_one_says_of_its_tokens() -> None:
    target = tiny_model("llama")
    vocabulary = trim_vocabulary(tiny_tokenizer(), KEPT, 61)
    whole, trimmed = (begin_draft(SHAPE, target, "pca", 0, vocabulary=item) for item in (None, vocabulary))
    tokens = torch.tensor([[5, 9, 50, 21]])
    expected = whole(input_ids=tokens).logits[..., KEPT]
    torch.testing.assert_close(trimmed(input_ids=vocabulary.fed_ids[tokens]).logits, expected)
    assert trimmed.config.eos_token_id == 2
    assert trimmed.get_output_embeddings().weight is trimmed.get_input_embeddings().weight


def test_a_head_of_almost_full_rank_is_nearly_the_whole_one() -> None:
    weight = torch.randn(61, 8, dtype=torch.float64) @ torch.randn(8, 32, dtype=torch.float64)
    hidden = torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(split_head(weight, 8)(hidden), hidden @ weight.T)
    assert (split_head(weight, 4)(hidden) - hidden @ weight.T).norm() < (hidden @ weight.T).norm()


@pytest.mark.parametrize("loss", ["kl", "tv", "acceptance"])
def test_the_loss_over_some_tokens_counts_the_target_s_whole_law(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    states = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    columns = torch.tensor([8, 2, 5])
    (found,), overlaps = fused_loss(lambda a, b: target[a:b], [(states, head)], loss, 3, columns)
    p, log_q = target.softmax(-1)[:, columns], (states @ head.T).log_softmax(-1)
    overlap = torch.minimum(p, log_q.exp()).sum(-1)
    values = {"kl": (p * (p.log() - log_q)).sum(-1), "tv": 1 - overlap, "acceptance": -overlap.log()}
    torch.testing.assert_close(found, values[loss].mean())
    torch.testing.assert_close(overlaps[0], overlap.mean())
    expected = torch.autograd.grad(values[loss].mean(), (states, head))
    for one, two in zip(torch.autograd.grad(found, (states, head)), expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.fixture(scope="module")
def trained(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    output = tmp_path_factory.mktemp("trimmed") / "draft"
    options = quick_options(vocab=24, head_rank=16, on_policy=0.5)
    return output, Distillation(model_options(target_folder), options, ["abc", "hello"], output, silent).run()


def test_it_is_trained_and_loads_without_further_flags(target_folder: Path, trained: tuple[Path, Any]) -> None:
    output, report = trained
    figures = report["drafts"]["32x1"]
    assert figures["after"]["overlap"] > figures["before"]["overlap"]
    assert not (output / "tokenizer.json").exists()
    engine = Engine.from_pretrained(str(target_folder), draft=str(output), dtype="float32")
    assert str(engine.models.vocabulary) == "24 of the target's 61 tokens"
    results = engine.generate([[5, 6, 7]] * 4, max_new_tokens=12, seed=1)
    tokens = [pair for item in results for pair in zip(item.token_ids, item.provenance, strict=True)]
    assert engine.models.vocabulary is not None
    drafted = {token for token, origin in tokens if origin == "drafted"}
    assert drafted <= set(kept_tokens(engine.models.vocabulary).tolist())
    assert "24 of the target's 61 tokens, a head of rank 16" in (output / "README.md").read_text()


def test_the_thin_head_gives_the_logits_of_the_plain_folder(target_folder: Path, trained: tuple[Path, Any]) -> None:
    output, _ = trained
    plain: Any = AutoModelForCausalLM.from_pretrained(output)
    models = load_models(replace(model_options(target_folder), draft=str(output)))
    loaded: Any = models.draft.storage  # type: ignore[union-attr]
    assert type(loaded.model.lm_head).__name__ == "LowRankHead"
    tokens = torch.arange(9).unsqueeze(0)
    loaded.model.set_attn_implementation("sdpa")
    expected = plain(input_ids=tokens).logits
    torch.testing.assert_close(loaded.model(input_ids=tokens).logits, expected, atol=1e-5, rtol=1e-4)


def test_the_doctor_names_the_tokens(target_folder: Path, trained: tuple[Path, Any]) -> None:
    pairing = load_pair(replace(model_options(target_folder), draft=str(trained[0])))
    assert (pairing.fit, pairing.words) == ("trimmed", "the draft was made for 24 of the target's 61 tokens")


def test_it_is_gone_on_with(target_folder: Path, trained: tuple[Path, Any], tmp_path: Path) -> None:
    options = quick_options(init=str(trained[0]), tokens=300, epochs=1)
    models = model_options(target_folder)
    run = Distillation(models, options, ["abc"], tmp_path / "on", silent)
    run.run()
    begun = begin_draft(SHAPE, run.models.target.model, options.init, 0, vocabulary=run.vocabulary)
    tokens = torch.arange(9).unsqueeze(0)
    plain: Any = AutoModelForCausalLM.from_pretrained(trained[0])
    torch.testing.assert_close(begun(tokens).logits, plain(tokens).logits, atol=1e-5, rtol=1e-4)
    found, kept = (load_file(folder / VOCABULARY_FILE) for folder in (tmp_path / "on", trained[0]))
    assert all(torch.equal(found[name], ids) for name, ids in kept.items())
    with pytest.raises(ConfigError, match="whose draft has 24 tokens; leave --vocab out"):
        Distillation(models, replace(options, vocab=30), ["abc"], tmp_path / "other", silent).run()


def test_another_target_s_draft_and_a_damaged_file_are_refused(
    target_folder: Path, trained: tuple[Path, Any], tmp_path: Path
) -> None:
    tiny_model("llama", dtype=torch.float32, vocab_size=70).save_pretrained(tmp_path / "wider")
    tiny_tokenizer().save_pretrained(tmp_path / "wider")
    options = replace(model_options(tmp_path / "wider"), draft=str(trained[0]))
    with pytest.raises(VocabularyMismatchError, match=r"trimmed vocabulary belongs to another target \(61 tokens\)"):
        load_models(options)
    for name in (VOCABULARY_FILE, HEAD_FILE):
        damaged = tmp_path / name.split(".")[0]
        damaged.mkdir()
        for file in trained[0].iterdir():
            if file.is_file():
                (damaged / file.name).write_bytes(file.read_bytes()[: None if file.name != name else 40])
        with pytest.raises(ModelLoadError, match="copy or download it again"):
            load_models(replace(options, target=str(target_folder), draft=str(damaged)))


def test_a_rank_as_wide_as_the_draft_is_refused() -> None:
    with pytest.raises(DistillError, match="got --head-rank 32 for a draft of width 32, expected less"):
        begin_draft(SHAPE, tiny_model("llama"), "pca", 0, head_rank=32)
