"""What the documents say is what the records and the code hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtad.config import DRAFTER_NAMES, METHOD_NAMES, RULE_OPTIONS, VERIFIER_NAMES

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tables_come_from_the_records() -> None:
    done = subprocess.run([sys.executable, "benchmarks/update_documents.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run python benchmarks/update_documents.py"


def test_the_readme_lists_every_method() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", readme, flags=re.MULTILINE))
    assert set(METHOD_NAMES) <= listed


def test_the_rules_list_every_drafter_rule_and_dial() -> None:
    rules = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", rules, flags=re.MULTILINE)[::-1])
    assert {*DRAFTER_NAMES, *VERIFIER_NAMES} <= set(rows)
    for rule, dials in RULE_OPTIONS.items():
        assert all(f"--{dial.replace('_', '-')}" in rows[rule] for dial in dials)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert not missing
