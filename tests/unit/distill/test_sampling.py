"""Texts follow the target's law and do not depend on kills."""

from typing import Any

import pytest
import torch
from tests.unit.distill.conftest import quick_options, silent

from mtad.distill.sampling import SAMPLING_SHARE, PromptSource, TextSampler, read_source, sample_texts
from mtad.distill.store import TextStore
from mtad.distill.work import WorkFolder
from mtad.errors import CapacityError, PromptError
from mtad.models.loading import LoadedModels


def _fill(models: LoadedModels, folder: Any, note: Any = silent, **changes: Any) -> TextStore:
    work = WorkFolder(folder)
    work.open({})
    store = TextStore(work, models.target.vocab_size)
    options = quick_options(tokens=1500, **changes)
    sample_texts(models, read_source(models, ["abc", "hello there"], options), store, options, note)
    return store


def test_tokens_are_drawn_with_the_target_s_probabilities(models: LoadedModels) -> None:
    rows, temperature = 4000, 0.7
    sampler = TextSampler(models.target, [])
    drawn = sampler.sample([[5, 6, 7], [9]] * (rows // 2), 2, temperature, torch.Generator().manual_seed(0))
    assert {len(item) for item in drawn} == {2}
    models.target.model.set_attn_implementation("sdpa")
    logits = models.target.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double() / temperature
    found = torch.bincount(torch.tensor([item[0] for item in drawn[::2]]), minlength=61) / (rows // 2)
    assert (found - logits.softmax(-1)).abs().sum() < 0.15


def test_texts_end_with_the_end_token(models: LoadedModels) -> None:
    sampler = TextSampler(models.target, [2])
    drawn = sampler.sample([[5]] * 200, 30, 1.0, torch.Generator().manual_seed(0))
    ended = [item for item in drawn if 2 in item]
    assert ended
    assert all(item.index(2) == len(item) - 1 for item in ended)
    assert {len(item) for item in drawn if 2 not in item} <= {30}


def test_a_time_budget_alone_says_how_much_is_sampled(models: LoadedModels, tmp_path: Any) -> None:
    work = WorkFolder(tmp_path)
    work.open({})
    store = TextStore(work, models.target.vocab_size)
    options = quick_options(tokens=None, time_budget="2s")
    sample_texts(models, read_source(models, ["abc"], options), store, options, silent)
    assert store.state["seconds"] >= SAMPLING_SHARE * 2
    assert store.state["is_finished"]


def test_a_killed_run_samples_the_same_texts(models: LoadedModels, tmp_path: Any) -> None:
    whole = _fill(models, tmp_path / "whole").open()

    def stop(_: str, done: float, __: str) -> None:
        if 0.3 < done < 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fill(models, tmp_path / "killed", stop)
    again = _fill(models, tmp_path / "killed")
    assert again.state["batches"] > 2
    assert again.open().ends.tolist() == whole.ends.tolist()
    assert (tmp_path / "killed/.work/tokens.bin").read_bytes() == (tmp_path / "whole/.work/tokens.bin").read_bytes()


def test_the_target_writes_prompts_in_its_user_s_turn(models: LoadedModels) -> None:
    source = read_source(models, [], quick_options())
    assert models.tokenizer.decode(source.opening) == "user: "
    assert source.template is not None
    assert [models.tokenizer.decode(item) for item in source.template(["hi", "ho"])] == [
        f"user: {word}\nassistant: " for word in ("hi", "ho")
    ]


def test_without_a_template_it_begins_with_its_own_first_token(models: LoadedModels) -> None:
    models.tokenizer.chat_template = None
    assert read_source(models, [], quick_options()) == PromptSource([], [1], None)


def test_prompts_that_are_all_too_long_are_refused(models: LoadedModels) -> None:
    with pytest.raises(PromptError, match="all longer than 4 tokens; raise --prompt-tokens"):
        read_source(models, ["abcdefgh"], quick_options(prompt_tokens=4))


def test_exhausted_memory_names_what_to_lower(
    models: LoadedModels, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TextSampler, "sample", exhausted)
    with pytest.raises(CapacityError, match=r"lower --batch-tokens .*--sampling-batch"):
        _fill(models, tmp_path)


def test_answers_longer_than_the_target_reads_are_refused(models: LoadedModels, tmp_path: Any) -> None:
    with pytest.raises(CapacityError, match=r"at most 128 tokens.*lower --answer-tokens"):
        _fill(models, tmp_path, answer_tokens=127)
