"""Two processes end where one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.distill.conftest import model_options, quick_options, silent

from mtad.distill.pipeline import Distillation
from mtad.distill.team import Team

FLAGS = ("--size=32x1", "--tokens=900", "--answer-tokens=16", "--sampling-batch=8", "--batch-tokens=256")
MORE = ("--epochs=2", "--accumulation=2", "--on-policy=0.5", "--dtype=float32", "--device=cpu")


def _start(arguments: list[str], rank: int, port: int) -> subprocess.Popen[str]:
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "mtad", "distill", *arguments]
    return subprocess.Popen(
        command, env=os.environ | rendezvous | place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _run_two(arguments: list[str]) -> list[tuple[int | None, str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [_start(arguments, rank, port) for rank in (0, 1)]
    outcomes = [process.communicate(timeout=200) for process in processes]
    return [(process.returncode, *outcome) for process, outcome in zip(processes, outcomes, strict=True)]


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(target_folder: Path, tmp_path: Path) -> None:
    arguments = ["--target", str(target_folder), *FLAGS, *MORE, "--json"]
    outcomes = _run_two([*arguments, "--out", str(tmp_path / "two")])
    assert [status for status, *_ in outcomes] == [0, 0], outcomes
    assert outcomes[1][1] == ""
    report = json.loads(outcomes[0][1])
    sizes: dict[str, Any] = {"tokens": 900, "answer_tokens": 16, "accumulation": 2, "on_policy": 0.5}
    alone = Distillation(model_options(target_folder), quick_options(**sizes), [], tmp_path / "one", silent).run()
    assert report["sample"]["tokens"] == alone["sample"]["tokens"]
    assert (tmp_path / "two/.work/tokens.bin").read_bytes() == (tmp_path / "one/.work/tokens.bin").read_bytes()
    assert report["train"]["batches"] == alone["train"]["batches"] > 4
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-3)
    # A refusal is said by all, and nobody waits for the others.
    refused = _run_two([*arguments, "--out", str(tmp_path / "two"), "--seed", "5"])
    assert [status for status, *_ in refused] == [2, 2]
    assert "seed was 0 and is 5" in refused[0][2]


def test_alone_nothing_is_shared() -> None:
    team, sums = Team(), [torch.ones(2)]
    team.add(sums)
    assert sums[0].tolist() == [1, 1]
    assert (team.gather("a"), team.lead(lambda: 3), team.leads) == (["a"], 3, True)
