"""What `mtad bench` measures besides speed: memory and profiles; and where its GGUF file comes from."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.energy import add_meter_flag
from mtad.cli.tables import format_table
from mtad.config import GenerationOptions, ModelOptions
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.api import Engine
    from mtad.api.contenders import Contender
    from mtad.bench.workloads import SpeedWorkload

_NOT_FOR_BENCH = ("method", "drafter", "verifier", "temperature", "max_new_tokens", "seed")


def add_extras(parser: argparse.ArgumentParser) -> None:
    """The flags of this file."""
    parser.add_argument(
        "--peak-memory",
        action="store_true",
        help="run each of our contenders once more in a process of its own and show the most memory it held",
    )
    parser.add_argument(
        "--profile",
        dest="profile_file",
        type=Path,
        metavar="FILE",
        help="JSON file to write: where an iteration's time goes, by stage and operation",
    )
    parser.add_argument(
        "--energy", action="store_true", help="joules per token of our contenders, in windows after the speeds"
    )
    add_meter_flag(parser)
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help="the target for llama_cpp (default: the pair's own, downloaded once)"
    )


def resolve_gguf(path: Path | None, models: ModelOptions) -> Path:
    """The GGUF file that llama.cpp reads.

    Raises:
        ConfigError: There is no such file, or none is known for the target.
        PairDownloadError: The pair's own cannot be fetched.
    """
    from mtad.models.pairs import KNOWN_PAIRS, pair_gguf

    if path is not None:
        if not path.is_file():
            raise ConfigError(f"got --gguf {path}, but there is no such file; name a GGUF file of the target")
        return path
    is_plain = models.adapter is None and models.target_shape is None
    if models.target not in KNOWN_PAIRS or not is_plain:
        raise ConfigError("llama_cpp needs the target as a GGUF file; name one with --gguf, or leave the contender out")
    return pair_gguf(models.target)


def measure_memory(
    options: argparse.Namespace, models: ModelOptions, generation: GenerationOptions, new_tokens: Sequence[int]
) -> dict[str, dict[str, int | None]]:
    """Peaks of our contenders, each from one batch of every workload in a process of its own.

    Raises:
        ConfigError: One of the processes failed.
    """
    from tqdm import tqdm

    from mtad.bench.memory import peak_memory_of
    from mtad.bench.peers import PEER_NAMES

    settings = {
        key: value
        for key, value in (asdict(models) | asdict(generation)).items()
        if value not in (None, ()) and key not in _NOT_FOR_BENCH
    }
    lists = {
        "--prompt-tokens": options.prompt_tokens,
        "--new-tokens": new_tokens,
        "--batch-sizes": options.batch_sizes,
        "--temperatures": options.temperatures,
    }
    words = [word for flag, values in lists.items() for word in (flag, *map(str, values))]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "settings.json"
        config.write_text(json.dumps(settings), encoding="utf-8")
        shared = ["bench", "--config", str(config), *words, "--repeats", "1", "--rules"]
        own = dict.fromkeys(label for label in options.rules if label not in PEER_NAMES)
        labels = tqdm(own, desc="memory", disable=None, leave=False)
        return {label: peak_memory_of([*shared, label]) for label in labels}


def measure_bench_energy(
    engine: "Engine",
    contenders: Sequence["Contender"],
    workloads: Sequence["SpeedWorkload"],
    repeats: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Joules of every contender on every workload; without a counter the reason alone.

    Raises:
        EnergyError: The meter that was asked for cannot be had.
    """
    from tqdm import tqdm

    from mtad.bench.energy import describe_meter, synchronizer
    from mtad.bench.speed_energy import measure_joules
    from mtad.energy import open_meter

    meter = open_meter(options.meter, synchronize=synchronizer(engine))
    try:
        rows: list[dict[str, Any]] = []
        if meter.scopes:
            with tqdm(total=len(contenders) * len(workloads), desc="energy", disable=None, leave=False) as bar:
                rows = measure_joules(engine, contenders, workloads, repeats, meter, lambda _: bar.update() and None)
        return {"meter": describe_meter(meter), "line": meter.describe(), "rows": rows}
    finally:
        meter.close()


def energy_cell(energy: dict[str, Any] | None, workload: int, label: str) -> list[str]:
    """Joules per token of one line of the table; no cell where energy was not asked for."""
    from mtad.results.energy import gross_joules, joule_format

    if energy is None:
        return []
    for row in energy["rows"]:
        if (row["workload"], row["contender"]) == (workload, label):
            joules = gross_joules(row["reading"], energy["meter"]["scopes"])
            if joules is not None:
                return [f"{joules / row['num_tokens']:{joule_format(joules / row['num_tokens'])}}"]
    return ["not measured"]


def write_profiles(engine: "Engine", contenders: Sequence["Contender"], workload: "SpeedWorkload", path: Path) -> str:
    """Profile every one of our contenders on a workload, write a record and return it as tables."""
    import torch

    from mtad.bench.profile import COLUMNS, profile_contender
    from mtad.results.files import write_json
    from mtad.results.provenance import describe_run

    found = {item.label: profile_contender(engine, item, workload) for item in contenders}
    write_json(
        path,
        {
            "kind": "profile",
            "schema": 1,
            "run": describe_run(),
            "models": asdict(engine.models.options),
            "threads": torch.get_num_threads(),
            "workload": asdict(workload),
            "contenders": found,
        },
    )
    tables = []
    for label, profile in found.items():
        rows = [
            [stage, f"{row['wall_ms']:.2f}", *(f"{row[f'{column}_ms']:.2f}" for column in COLUMNS)]
            for stage, row in profile["stages"].items()
        ]
        title = f"{label}: milliseconds an iteration, {profile['num_iterations']} iterations, prefill within the rest"
        tables.append(f"{title}\n{format_table(('stage', 'wall', *COLUMNS), rows)}")
    return "\n".join(tables)
