"""The command as a whole: it starts without torch and knows its version."""

import subprocess
import sys

import pytest
from tests.unit.cli.conftest import RunCommand

import mtad

HEAVY = ("torch", "transformers", "numpy", "tqdm")


@pytest.mark.parametrize(
    "statement",
    [
        "import mtad",
        "from mtad import GenerationOptions, ModelOptions, MtadError",
        "import mtad.cli.main as cli; cli.main(['--help'])",
        "import mtad.cli.main as cli; cli.main(['generate', '--help'])",
        "import mtad.cli.main as cli; cli.main(['compare', '--help'])",
        "import mtad.cli.main as cli; cli.main(['replay', '--help'])",
        "import mtad.cli.main as cli; cli.main(['distill', '--help'])",
        "import mtad.cli.main as cli; cli.main(['doctor', '--help'])",
        "import mtad.cli.main as cli; cli.main(['distill', '--out', 'x', '--size', 'huge'])",
        "import mtad.cli.main as cli; cli.main(['generate', 'hi', '--gamma', '0'])",
        "import mtad.cli.main as cli; cli.main(['generate', ''])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    code = (
        "import sys\n"
        f"try:\n    {statement}\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_that_of_the_package(command: RunCommand) -> None:
    outcome = command("--version")
    assert (outcome.status, outcome.out) == (0, f"mtad {mtad.__version__}\n")
