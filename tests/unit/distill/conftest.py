"""A tiny target in a folder, and settings that train a draft in a second."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_engine import tiny_tokenizer
from tests.tiny_models import tiny_model

from mtad.config import DistillOptions, ModelOptions
from mtad.models.loading import LoadedModels, load_models

QUICK = {"tokens": 1500, "answer_tokens": 24, "sampling_batch": 8, "batch_tokens": 256, "epochs": 2}


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def models(target_folder: Path) -> LoadedModels:
    return load_models(model_options(target_folder), wants_draft=False)


def model_options(folder: Path) -> ModelOptions:
    return ModelOptions(target=str(folder), device="cpu", dtype="float32")


def quick_options(**changes: Any) -> DistillOptions:
    return DistillOptions(**({"size": ("32x1",)} | QUICK | changes))


def silent(stage: str, done: float, words: str) -> None:
    """Takes no note."""
