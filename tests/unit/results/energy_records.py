"""Records of energy without a machine."""

from typing import Any


def sample(label: str, repeat: int, watts: float, seconds: float = 10.0, **changes: Any) -> dict[str, Any]:
    reading = {
        "seconds": seconds,
        "joules": {"gpu": watts * seconds, "dram": 10.0 * seconds},
        "idle_watts": {"gpu": 60.0, "dram": 4.0},
        "not_measured": {"cpu_package": "may not be read"},
    }
    found = {
        "workload": 0, "contender": label, "repeat": repeat, "seconds": seconds, "busy_s": seconds / 2,
        "num_answers": 5, "num_tokens": 100, "target_calls": 50, "num_iterations": 50, "log_prob_sum": -100.0,
        "latencies_s": [1.0, 2.0, 3.0], "reading": reading,
    }  # fmt: skip
    return found | changes


def phase(label: str, name: str, joules: float, batch_size: int = 1) -> dict[str, Any]:
    reading = {"seconds": 2.0, "joules": {"gpu": joules, "dram": 0.0}, "idle_watts": {}, "not_measured": {}}
    return {
        "contender": label, "batch_size": batch_size, "prompt_tokens": 0, "phase": name, "num_calls": 20,
        "reading": reading,
    }  # fmt: skip


def record(samples: list[dict[str, Any]], phases: list[dict[str, Any]] | None = None, **meter: Any) -> dict[str, Any]:
    workload = {"pattern": "steady", "batch_size": 1, "prompt_tokens": 0, "new_tokens": 20, "label": "steady"}
    return {
        "kind": "energy",
        "schema": 1,
        "meter": {
            "scopes": ["gpu", "dram"],
            "scope": "GPU + DRAM",
            "backend": "zeus",
            "is_recording": False,
            "reason": None,
            "not_measured": {"cpu_package": "may not be read"},
        }
        | meter,
        "skipped": {},
        "idle": [],
        "setup": {
            "contenders": {"autoregressive": {}, "speculative": {}, "mmtad": {}},
            "baseline": "speculative",
            "workloads": [workload],
        },
        "samples": samples,
        "phases": phases or [],
    }
