"""The recipe runs from the data to the figures, and goes on where it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.spider import AdapterTrainer, Plan, encode_pairs, main, order, pad
from safetensors.torch import load_file
from tests.data_folder import write_data_folder
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import tiny_model

from mtad.distill.work import WorkFolder
from mtad.evaluation.tasks.spider import load_spider, training_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("target")
    tiny_model("llama", dtype=torch.float32, max_position_embeddings=512).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_training_asks_what_the_evaluation_asks(data: Path) -> None:
    pairs, items = training_pairs(data), load_spider(data, 0)
    assert [prompt for prompt, _ in pairs] == [item.turns[0] for item in items]
    assert pairs[0][1] == "SELECT name FROM fruit"
    (prompt, answer), *_ = encode_pairs(tiny_tokenizer(), pairs)
    assert answer[-1] == tiny_tokenizer().eos_token_id
    tokens, labels = pad([(prompt, answer), (prompt[:5], answer)], torch.device("cpu"))
    assert labels[1, :5].tolist() == [-100] * 5
    assert labels[1, 5 : 5 + len(answer)].tolist() == answer == tokens[1, 5 : 5 + len(answer)].tolist()
    assert (labels[1, 5 + len(answer) :] == -100).all()


def test_the_recipe_ends_with_figures_and_goes_on(
    data: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--out", str(tmp_path), "--target", target, "--device", "cpu", "--quick"]
    assert main(arguments) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "evaluation/run.json").read_text())
    assert record["is_complete"]
    rows = {row["contender"]: row for row in record["rows"]}
    assert {"autoregressive", "speculative", "mmtad"} <= set(rows)
    assert 0 <= rows["mmtad"]["score"]["value"] <= 1
    assert rows["mmtad"]["decoding"]["tokens_per_call"]["value"] >= 1
    assert "mmtad" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.safetensors")}
    assert len(before) == 2
    assert main(arguments) == 0
    assert before[tmp_path / "adapter/adapter_model.safetensors"] == (
        (tmp_path / "adapter/adapter_model.safetensors").stat().st_mtime_ns
    )
    adapter: dict[str, Any] = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {len(weight) for name, weight in adapter.items() if "lora_A" in name} == {32}


def test_a_killed_adapter_ends_with_the_same_weights(data: Path, tmp_path: Path) -> None:
    examples = encode_pairs(tiny_tokenizer(), training_pairs(data))
    steps = order(len(examples), Plan(epochs=4, batch=2), 0)
    found = []
    for stops in ((len(steps),), (3, len(steps))):
        work = WorkFolder(tmp_path / str(len(stops)))
        work.open({})
        for stop in stops:
            model = tiny_model("llama", dtype=torch.float32, max_position_embeddings=512)
            trainer = AdapterTrainer(model, work, 1e-2)
            trainer.resume()
            while trainer.step < stop:
                batch = [examples[number] for number in steps[trainer.step]]
                trainer.learn(*pad(batch, torch.device("cpu")), trainer.step / len(steps))
            trainer.save()
        found.append(trainer.weights)
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def test_other_settings_and_missing_data_are_one_sentence(
    data: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter/.work").mkdir(parents=True)
    (tmp_path / "adapter/.work/settings.json").write_text('{"target": "another"}')
    (tmp_path / "adapter/.work/checkpoint.pt").write_bytes(b"something")
    arguments = ["--out", str(tmp_path), "--target", target, "--device", "cpu", "--quick"]
    assert main(["--data", str(data), *arguments]) == 2
    assert "target was 'another' and is" in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "nowhere"), *arguments]) == 2
    assert "name the folder that holds the data sets with --data" in capsys.readouterr().err
