"""`mtad bench --server`: load on a running server."""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtad.cli.tables import format_table
from mtad.config import Setting
from mtad.errors import ConfigError

if TYPE_CHECKING:
    from mtad.bench.server_client import ServerClient
    from mtad.bench.server_load import Load
    from mtad.results.server_load import LoadSummary

STREAMS = Setting(name="streams", help="requests open at all times", type=int, minimum=1, maximum=1024)
RATES = Setting(name="rates", help="requests a second, at random times", type=float, above=0, maximum=10_000)
REQUESTS = Setting(name="requests", help="requests of each load", type=int, minimum=1, maximum=100_000)
HEADINGS = (
    "load",
    "requests",
    "lost",
    "refused",
    "tokens/s",
    "speed",
    "first token ms p50/p90/p99",
    "between tokens ms p50/p90/p99",
    "tokens/call",
    "rows/step",
    "reused",
)
_DEFAULT_STREAMS = (1, 8, 64)
_FIELDS = (
    *("method", "drafter", "verifier", "gamma", "beam_width", "threshold"),
    *("top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty"),
)


def add_server(parser: argparse.ArgumentParser) -> None:
    """The flags of this file."""
    group = parser.add_argument_group("load on a server")
    group.add_argument("--server", metavar="URL", help="time a running mtad serve instead; key in MTAD_API_KEY")
    group.add_argument("--streams", nargs="+", type=int, metavar="N", help=f"{STREAMS.help} (default: 1 8 64)")
    group.add_argument("--rates", nargs="+", type=float, metavar="X", help=f"{RATES.help}, instead of streams or too")
    group.add_argument("--requests", type=int, metavar="N", help=f"{REQUESTS.help} (default: 16, or 2 a stream)")


def run_server(options: argparse.Namespace, new_tokens: list[int]) -> int:
    """Run the loads and show them; returns the exit status."""
    loads = _loads(options, new_tokens)

    from mtad.bench.server_client import ServerClient
    from mtad.results.files import write_json
    from mtad.results.server_load import summarize_load

    client = ServerClient(options.server, os.environ.get("MTAD_API_KEY"))
    fields = {name: value for name, value in vars(options).items() if name in _FIELDS}
    record = _open_record(client, fields)
    if options.record is not None:
        record = _begin(options.record, record)
        write_json(options.record, record)
    status = _measure(client, loads, fields, record, options.record)
    if options.json:
        from mtad.cli.output import to_json
        from mtad.results.server_load import load_to_json

        head = {name: record[name] for name in ("run", "model", "fields")}
        print(to_json(head | {"rows": load_to_json(summarize_load(record))}))
    else:
        print(format_table(HEADINGS, [cells(item) for item in summarize_load(record)]))
    return status


def _loads(options: argparse.Namespace, new_tokens: list[int]) -> "list[Load]":
    from mtad.bench.server_load import Load

    streams = options.streams or ([] if options.rates else list(_DEFAULT_STREAMS))
    rates = options.rates or []
    for item, values in ((STREAMS, streams), (RATES, rates), (REQUESTS, [options.requests])):
        for value in values:
            item.check(value)
    return [
        Load(
            streams=count,
            rate=rate,
            num_requests=options.requests or max(16, 2 * (count or 0)),
            prompt_tokens=length,
            new_tokens=tokens,
            temperature=temperature,
        )
        for length in options.prompt_tokens
        for tokens in new_tokens
        for temperature in options.temperatures
        for count, rate in [*((count, None) for count in streams), *((None, rate) for rate in rates)]
    ]


def _open_record(client: "ServerClient", fields: dict[str, Any]) -> dict[str, Any]:
    import json

    from mtad.results.provenance import describe_run
    from mtad.results.server_load import SCHEMA

    found = json.loads(client.ask("/v1/models"))["data"]
    return {
        "kind": "server_load",
        "schema": SCHEMA,
        "run": describe_run(),
        "model": found[0]["id"],
        "fields": fields,
        "samples": [],
    }


def _begin(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The record that lies there, to go on with, else the fresh one."""
    from mtad.results.files import read_json

    if not path.exists():
        return fresh
    found = read_json(path)
    for key in ("kind", "schema", "model", "fields"):
        if found.get(key) != fresh[key]:
            raise ConfigError(f"the record is of another run (its {key} differs); name another file")
    return found | {"continued": [*found.get("continued", []), fresh["run"]]}


def _measure(
    client: "ServerClient", loads: "list[Load]", fields: dict[str, Any], record: dict[str, Any], path: Path | None
) -> int:
    from tqdm import tqdm

    from mtad.bench.server_load import request_bodies, run_load
    from mtad.results.files import write_json

    done = [item["load"] for item in record["samples"]]
    first, is_warm = sum(item["num_requests"] for item in done), False
    try:
        for load in loads:
            if asdict(load) | {"label": load.label} in done:
                continue
            bodies = request_bodies(client, load, fields, first)
            first += load.num_requests
            if not is_warm:
                client.stream(bodies[0] | {"seed": 1 << 30, "max_tokens": 4})  # nobody's first request is timed
                is_warm = True
            with tqdm(total=len(bodies), desc=load.label, unit="answer", disable=None, leave=False) as bar:
                record["samples"].append(run_load(client, load, bodies, bar.update))
            if path is not None:
                write_json(path, record)
    except KeyboardInterrupt:
        print("[interrupted]", file=sys.stderr)
        return 130
    return 0


def cells(item: "LoadSummary") -> list[str]:
    """A line of the table."""
    return [
        item.label,
        str(item.num_requests),
        str(item.num_lost),
        str(item.num_refused),
        f"{item.tokens_per_s:.1f}",
        "" if item.ratio is None else f"{item.ratio:.2f}x",
        _percentiles(item.first_token_ms),
        _percentiles(item.inter_token_ms),
        "" if item.tokens_per_call is None else f"{item.tokens_per_call:.2f}",
        "" if item.rows_per_step is None else f"{item.rows_per_step:.1f}",
        "" if item.reused_share is None else f"{item.reused_share:.0%}",
    ]


def _percentiles(values: tuple[float, ...] | None) -> str:
    return "" if values is None else "/".join(f"{value:.0f}" for value in values)
