import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.tiny_pairs import TinyPair

from mtad.errors import PairDownloadError
from mtad.models.pairs import KNOWN_PAIRS
from mtad.models.pairs.folders import MANIFEST_NAME, file_sha256
from mtad.models.pairs.packed_draft import PACKED_NAME, expand_draft, expand_tensors, tensor_sha256

SHIPPED = KNOWN_PAIRS["smollm2"].draft_folder


def test_the_shipped_draft_expands_to_the_recorded_weights() -> None:
    recorded = json.loads((SHIPPED / MANIFEST_NAME).read_text())["tensor_sha256"]
    tensors = expand_tensors(load_file(SHIPPED / PACKED_NAME))
    assert {name: tensor_sha256(tensor) for name, tensor in tensors.items()} == recorded


def test_the_shipped_file_is_the_recorded_one_and_small() -> None:
    manifest = json.loads((SHIPPED / MANIFEST_NAME).read_text())
    assert file_sha256(SHIPPED / PACKED_NAME) == manifest["packed_sha256"]
    assert (SHIPPED / PACKED_NAME).stat().st_size == manifest["packed_bytes"] <= 17_000_000


def test_a_damaged_packed_draft_is_refused(tiny_pair: TinyPair, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(tiny_pair.source.draft_folder, packed)
    content = bytearray((packed / PACKED_NAME).read_bytes())
    content[-1] ^= 1
    (packed / PACKED_NAME).write_bytes(content)
    with pytest.raises(PairDownloadError, match="reinstall mtad"):
        expand_draft(packed, tmp_path, tmp_path / "out")
