import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tools.pack_draft import main, pack_rows

from mtad.models.pairs.folders import MANIFEST_NAME
from mtad.models.pairs.packed_draft import expand_rows, expand_tensors, tensor_sha256


def int8_rows(num_rows: int, num_columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-127, 128, (num_rows, num_columns), generator=generator)
    levels[:, 0] = 127
    scales = torch.rand(num_rows, 1, generator=generator) * 0.01 + 1e-4
    return (levels * scales).bfloat16()


@pytest.mark.parametrize("num_columns", [1, 8, 256])
def test_int8_rows_come_back_bit_for_bit(num_columns: int) -> None:
    weight = int8_rows(200, num_columns)
    levels, scales, is_exact = pack_rows(weight)
    assert levels.dtype == torch.int8
    assert is_exact.all()
    assert torch.equal(expand_rows(levels, scales), weight)


def test_rows_of_zeros_are_exact() -> None:
    levels, scales, is_exact = pack_rows(torch.zeros(3, 8, dtype=torch.bfloat16))
    assert is_exact.all()
    assert not expand_rows(levels, scales).any()


def test_other_rows_are_rounded_to_half_a_level() -> None:
    weight = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    levels, scales, is_exact = pack_rows(weight)
    assert not is_exact.any()
    assert ((levels * scales[:, None] - weight.float()).abs() <= scales[:, None] * 0.501).all()


def write_model(folder: Path, weight: torch.Tensor) -> None:
    folder.mkdir()
    save_file({"layer.weight": weight, "norm.weight": torch.ones(4).bfloat16()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")


def test_a_folder_is_packed_with_its_manifest(tmp_path: Path) -> None:
    weight = int8_rows(10, 16)
    write_model(tmp_path / "model", weight)
    assert main([str(tmp_path / "model"), str(tmp_path / "packed")]) == 0
    expanded = expand_tensors(load_file(tmp_path / "packed" / "draft.safetensors"))
    assert torch.equal(expanded["layer.weight"], weight)
    manifest = json.loads((tmp_path / "packed" / MANIFEST_NAME).read_text())
    assert manifest["tensor_sha256"]["layer.weight"] == tensor_sha256(weight)


def test_a_loss_must_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model", torch.randn(4, 300).bfloat16())
    arguments = [str(tmp_path / "model"), str(tmp_path / "packed")]
    assert main(arguments) == 1
    assert "pass --allow-loss" in capsys.readouterr().err
    assert main([*arguments, "--allow-loss"]) == 0
