"""How many threads torch computes with: as many as this process really has cores."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

_UNLIMITED = "max"


def set_threads(wanted: int | None) -> int:
    """Let torch compute with so many threads; returns how many there are.

    Without a wish, `OMP_NUM_THREADS` decides where it is set; else torch's own number is lowered to the cores that the
    process may use. More threads than cores wait for each other in every product.

    Args:
        wanted: Threads, at least 1; None leaves the choice.
    """
    number = choose_threads(wanted, os.environ, torch.get_num_threads(), num_cores())
    if number != torch.get_num_threads():
        torch.set_num_threads(number)
    return number


def choose_threads(wanted: int | None, environment: Mapping[str, str], current: int, cores: int) -> int:
    """The number that `set_threads` sets.

    Args:
        wanted: What was asked for, if anything.
        environment: May hold `OMP_NUM_THREADS`, which torch has read already.
        current: torch's number.
        cores: What the process may use.
    """
    if wanted is not None:
        return wanted
    return current if environment.get("OMP_NUM_THREADS") else max(1, min(current, cores))


def num_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use, by its affinity and the CPU quota of its control groups; at least 1.

    Args:
        root: Where `proc` and `sys` lie.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = cpu_quota(root)
    # Of a core and a half, a second thread would wait half of the time, and the first one for it.
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the control groups of this process grant, versions 1 and 2; None for no limit.

    A group can have no more than any group above it. A container may show its own groups as the root.

    Args:
        root: Where `proc` and `sys` lie.
    """
    mount = root / "sys/fs/cgroup"
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            quotas += [_quota_of_version_2(folder) for folder in _with_parents(mount, path)]
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu"):
                quotas += [_quota_of_version_1(folder) for folder in _with_parents(mount / name, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _with_parents(mount: Path, path: str) -> list[Path]:
    """The folder of a group and those of the groups above it, the mount included."""
    folder = mount / path.strip().lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _quota_of_version_2(folder: Path) -> float | None:
    quota, period = (*" ".join(_lines(folder / "cpu.max")).split(), "", "")[:2]
    return None if quota == _UNLIMITED else _ratio(quota, period)


def _quota_of_version_1(folder: Path) -> float | None:
    quota, period = (" ".join(_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return None if quota.startswith("-") else _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    """None for what is no pair of positive numbers."""
    if not (quota.isdecimal() and period.isdecimal()) or not int(quota) or not int(period):
        return None
    return int(quota) / int(period)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
