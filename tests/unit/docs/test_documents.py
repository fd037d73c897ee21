"""What the documents say is what the records and the code hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtad.config import METHOD_NAMES

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tables_come_from_the_records() -> None:
    done = subprocess.run([sys.executable, "benchmarks/update_documents.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run python benchmarks/update_documents.py"


def test_the_readme_lists_every_method() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", readme, flags=re.MULTILINE))
    assert set(METHOD_NAMES) <= listed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert not missing
