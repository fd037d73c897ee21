"""Every record says how it was made."""

import subprocess
import sys

import pytest

from mtad.results.provenance import describe_run, machine_name


@pytest.mark.parametrize("program", ["/somewhere/bin/mtad", "/somewhere/mtad/__main__.py"])
def test_command_versions_and_machine_are_named(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "compare", "--system", "be brief"])
    run = describe_run()
    assert run["command"] == "mtad compare --system 'be brief'"
    assert set(run["versions"]) == {"python", "mtad", "torch", "transformers"}
    assert run["machine"]["cores"] >= 1


def test_a_machine_is_named_by_its_accelerators_where_they_are_used() -> None:
    machine = {"processor": "a CPU", "cores": 8, "system": "Linux"}
    assert machine_name({"machine": machine}) == "a CPU"
    assert machine_name({"machine": machine | {"accelerators": []}}) == "a CPU"
    assert machine_name({"machine": machine | {"accelerators": ["A", "B", "A"]}}) == "2 x A, B"
    assert describe_run()["machine"]["accelerators"] == []


def test_a_checkout_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    run = describe_run()
    assert run["commit"] is None
    assert run["is_dirty"] is None


def test_the_room_needs_no_torch() -> None:
    code = "import mtad.results.comparison, mtad.results.provenance, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
