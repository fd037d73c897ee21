"""What lies in deploy/ fits the server that it is for."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.server.conftest import Running, Serve

from mtad.cli.main import build_parser
from mtad.cli.parser import read_tables
from mtad.config import ServerOptions, SessionOptions, setting_fields

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
TARGET_LABELS = {"instance", "job"}
"""Labels that Prometheus itself adds."""


def samples(running: Running) -> dict[str, set[str]]:
    """Labels by the name of the sample."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(requests.get(f"{running.url}/metrics", timeout=20).text):
        for item in family.samples:
            found.setdefault(item.name, set()).update(item.labels)
    return found


def queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    variables = [item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + variables


def test_every_query_of_the_dashboard_finds_its_metric(serve: Serve, tmp_path: Path) -> None:
    running = serve(log_file=str(tmp_path / "log"))
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "ignore_eos": True}
    for extra in ({}, {"max_tokens": 0}):
        requests.post(f"{running.url}/v1/chat/completions", json=body | extra, timeout=60)
    found = samples(running)
    assert len(queries()) > 20
    for query in queries():
        names = re.findall(r"\b(?:mtad|process)_\w+", query)
        assert names, query
        asked = {label for inside in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", inside)}
        asked |= {
            label for inside in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)\s*[=!]", inside)
        }
        for name in names:
            assert name in found, f"{name} of {query!r} is not there"
            assert asked - TARGET_LABELS <= found[name], query


def test_every_counter_of_ours_is_on_the_dashboard(serve: Serve, tmp_path: Path) -> None:
    shown = " ".join(queries())
    for name in samples(serve(log_file=str(tmp_path / "log"))):
        if name.startswith("mtad_") and name.endswith("_total"):
            assert name in shown


def settings_of(words: list[str]) -> tuple[Any, ...]:
    options, extra = build_parser().parse_known_args(words)
    assert not extra
    return read_tables(options, {"server": ServerOptions, "batch": SessionOptions})


def test_the_systemd_unit_starts_what_there_is() -> None:
    unit = (DEPLOY / "mtad.service").read_text()
    [start] = re.findall(r"^ExecStart=(.*)$", unit, flags=re.MULTILINE)
    program, *words = shlex.split(start)
    assert Path(program).name == "mtad"
    words[words.index("/etc/mtad/serve.toml")] = str(DEPLOY / "serve.toml")
    _, _, server, session = settings_of(words)
    assert (server.port, session.max_rows, server.log_format) == (8000, 16, "json")
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, flags=re.MULTILINE)
    assert int(stop) > server.drain_timeout


def test_the_image_starts_what_there_is() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    [entry] = re.findall(r"^ENTRYPOINT (\[.*\])$", text, flags=re.MULTILINE)
    program, *words = json.loads(entry)
    assert program == "mtad"
    _, _, server, _ = settings_of(words)
    assert (server.host, server.port) == ("0.0.0.0", 8000)
    assert re.search(r"^USER (?!root)", text, flags=re.MULTILINE)
    assert "--no-deps" in text
    assert f"127.0.0.1:{server.port}/ready" in text
    for source in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE):
        assert all((DEPLOY.parent / name).exists() for name in source.split())


def test_the_manual_lists_every_setting_of_the_server() -> None:
    manual = (DEPLOY.parent / "docs" / "serving.md").read_text()
    for item in setting_fields(ServerOptions):
        assert f"`--{item.name.replace('_', '-')}" in manual, item.name


def test_the_manual_lists_every_metric_of_ours(serve: Serve, tmp_path: Path) -> None:
    manual = (DEPLOY.parent / "docs" / "serving.md").read_text()
    for name in samples(serve(log_file=str(tmp_path / "log"))):
        if name.startswith("mtad_") and not name.endswith(("_bucket", "_sum", "_count", "_created")):
            assert f"`{name}" in manual, name
