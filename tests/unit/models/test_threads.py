"""Threads follow the cores that the process has, not those of the machine."""

import os
from pathlib import Path

import pytest
import torch

from mtad.config import ModelOptions
from mtad.errors import ConfigError
from mtad.models import threads
from mtad.models.threads import choose_threads, cpu_quota, num_cores, set_threads


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


SECOND = {"proc/self/cgroup": "0::/user/job\n"}
FIRST = {"proc/self/cgroup": "12:memory:/job\n4:cpu,cpuacct:/job\n0::/job\n"}
FOLDER = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        (SECOND, None),
        (SECOND | {f"{FOLDER}/user/job/cpu.max": "max 100000\n"}, None),
        (SECOND | {f"{FOLDER}/user/job/cpu.max": "150000 100000\n"}, 1.5),
        (SECOND | {f"{FOLDER}/user/job/cpu.max": "400000 100000\n", f"{FOLDER}/user/cpu.max": "200000 100000\n"}, 2),
        (SECOND | {f"{FOLDER}/cpu.max": "300000 100000\n"}, 3),
        (SECOND | {f"{FOLDER}/cpu.max": "nonsense\n"}, None),
        (
            FIRST
            | {
                f"{FOLDER}/cpu,cpuacct/job/cpu.cfs_quota_us": "-1",
                f"{FOLDER}/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        (
            FIRST
            | {
                f"{FOLDER}/cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
                f"{FOLDER}/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (FIRST | {f"{FOLDER}/cpu/cpu.cfs_quota_us": "200000", f"{FOLDER}/cpu/cpu.cfs_period_us": "100000"}, 2),
    ],
    ids=str,
)
def test_the_quota_is_the_tightest_of_the_groups(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    _write(tmp_path, files)
    assert cpu_quota(tmp_path) == quota


def test_cores_are_bound_by_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert num_cores(tmp_path) == 6
    for quota, cores in (("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6)):
        _write(tmp_path, SECOND | {f"{FOLDER}/cpu.max": quota})
        assert num_cores(tmp_path) == cores


def test_a_wish_goes_first_then_the_environment_then_the_cores() -> None:
    assert choose_threads(7, {"OMP_NUM_THREADS": "3"}, 3, 2) == 7
    assert choose_threads(None, {"OMP_NUM_THREADS": "3"}, 3, 2) == 3
    assert choose_threads(None, {"OMP_NUM_THREADS": ""}, 8, 2) == 2
    # torch counts cores, not the two threads of each.
    assert choose_threads(None, {}, 4, 8) == 4
    assert choose_threads(None, {}, 4, 0) == 1


def test_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(2) == torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(threads, "num_cores", lambda: 1)
        assert set_threads(None) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_no_threads_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="threads must be a whole number >= 1 and <= 1024, got 0"):
        ModelOptions(threads=0)
