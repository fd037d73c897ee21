"""Generated code passes, fails, or is stopped; it never reaches what is outside."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtad.evaluation import sandbox
from mtad.evaluation.sandbox import SandboxLimits, run_program

SHORT = SandboxLimits(wall_s=3.0, cpu_s=2, file_bytes=1 << 20, num_processes=8, memory_bytes=1 << 29)


def test_a_program_passes_when_it_reaches_its_end() -> None:
    outcome = run_program("assert sorted([2, 1]) == [1, 2]\n", SHORT)
    assert outcome.is_passed, outcome
    assert outcome.problem == ""


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("not python (", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early with status 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("x = 'a' * (2 << 30)", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_failures_are_named(source: str, problem: str) -> None:
    outcome = run_program(source, SHORT)
    assert not outcome.is_passed
    assert problem in outcome.problem


@pytest.mark.parametrize("source", ["while True: pass", "import time; time.sleep(60)"])
def test_endless_programs_are_stopped(source: str) -> None:
    started = time.monotonic()
    assert not run_program(source, SandboxLimits(wall_s=1.0, cpu_s=9)).is_passed
    assert time.monotonic() - started < 5


def test_a_fork_bomb_leaves_nothing_behind(tmp_path: Path) -> None:
    bomb = (
        f"import os\nos.environ['MARK'] = {str(tmp_path)!r}\n"
        "while True:\n    try: os.fork(); os.setsid()\n    except OSError: pass"
    )
    assert not run_program(bomb, SandboxLimits(wall_s=1.0, num_processes=8)).is_passed
    time.sleep(0.2)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sandbox_child.py" not in left


@pytest.mark.parametrize("folder", [".", "/tmp", "/var/tmp", "/dev/shm"])
def test_a_disk_filler_fills_nothing(folder: str) -> None:
    source = (
        f"for number in range(10000):\n    with open({folder!r} + f'/filler{{number}}', 'wb') as file:\n"
        "        file.write(bytes(300_000))\n"
    )
    assert not run_program(source, SHORT).is_passed
    if folder != ".":
        assert not (Path(folder) / "filler5").exists()


@pytest.mark.parametrize("process", ["os.getppid()", "PARENT"])
def test_a_program_cannot_kill_its_parent(process: str) -> None:
    source = f"import os, signal\nos.kill({process.replace('PARENT', str(os.getpid()))}, signal.SIGKILL)\n"
    run_program(source, SHORT)
    assert not run_program("import os, signal\nos.killpg(0, signal.SIGKILL)\n", SHORT).is_passed


def test_the_network_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run_program(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)", SHORT)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    assert any(word in outcome.problem for word in ("refused", "unreachable", "not allowed")), outcome


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "1")
    outcome = run_program("import os\nassert 'A_SECRET' not in os.environ\nassert os.listdir('.') == []", SHORT)
    assert outcome.is_passed, outcome


def test_without_namespaces_python_itself_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    text = Path(sandbox.__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")
    child.write_text(text.replace('sys.platform.startswith("linux")', "False"), encoding="utf-8")
    tmp_path.chmod(0o755)
    monkeypatch.setattr(sandbox, "_CHILD", child)
    assert run_program("assert True", SHORT).is_passed
    assert run_program("open('own', 'w').write('x')", SHORT).is_passed
    for source in (
        "import socket; socket.socket()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.fork()",
        "open('/tmp/elsewhere', 'w')",
    ):
        outcome = run_program(source, SHORT)
        assert outcome.isolation == "audit_hook"
        assert "not allowed here" in outcome.problem, outcome


def test_the_child_is_python_without_mtad() -> None:
    assert run_program("import sys\nassert not any('mtad' in name for name in sys.modules)", SHORT).is_passed
    assert sys.executable
