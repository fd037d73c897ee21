"""Records become a page that needs nothing else, and says what it does not know."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.unit.results.energy_records import phase, record, sample

from mtad.errors import ConfigError
from mtad.report.building import Files, build_difference, build_report
from mtad.report.figures import pareto_front
from mtad.report.loading import load_record
from mtad.report.tables import to_markdown

RUN = {
    "command": "mtad evaluate <x>",
    "commit": "abc",
    "is_dirty": True,
    "machine": {"processor": "p", "cores": 2, "system": "s"},
    "versions": {"python": "3.11", "torch": None},
}


def entry(contender: str, item: int, value: float | None, task: str = "gsm8k") -> dict[str, Any]:
    return {
        "task": task, "metric": "exact match", "item": str(item), "group": "", "contender": contender, "seed": 0,
        "start": 0, "turns": ["what is <b>1+1</b>?"], "value": value, "details": {}, "outputs": ["two <i>"],
        "segments": [[["two", "drafted"], [" <i>", "target"]]], "num_prompt_tokens": 3, "num_tokens": 4 + item,
        "target_calls": 2, "log_prob_sum": -2.0, "kept_lengths": [1, 1, 0], "refused_sum": 0.5,
        "finish_reason": "stop", "batch_decode_s": 1.0, "decode_s": 1.0,
    }  # fmt: skip


def text(files: Files, name: str) -> str:
    content = files[name]
    assert isinstance(content, str)
    return content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "first"
    path.mkdir()
    entries = [entry(name, item, float(item % 2)) for name in ("autoregressive", "mmtad") for item in range(4)]
    entries += [entry("mmtad", 0, None, "wikitext")]
    (path / "items.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    (path / "run.json").write_text(json.dumps({"kind": "evaluate", "schema": 1, "run": RUN, "models": {"target": "t"}}))
    return path


class Checker(HTMLParser):
    """Counts tags and notes what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone(folder: Path) -> None:
    files = build_report([load_record(folder)])
    checker = Checker()
    checker.feed(text(files, "report.html"))
    assert all(address.startswith("data:image/svg+xml") for address in checker.fetched)
    assert checker.tags.count("img") == 6
    assert "script" not in checker.tags
    assert "what is <b>1+1</b>?" in checker.text
    assert '<span class="drafted">two</span>' in text(files, "report.html")
    assert "prefers-color-scheme: dark" in text(files, "report.html")
    assert "Energy: not measured" in checker.text
    assert "Scores of wikitext" in checker.text
    assert "abc (with local changes)" in checker.text
    assert "| gsm8k | mmtad | 4 | 0.500 [" in text(files, "report.md")
    assert text(files, "report.csv").splitlines()[0].startswith("task,contender,items")
    assert {name for name in files if name.endswith(".svg")} == {
        *(f"figures/1-gsm8k-{kind}.svg" for kind in ("pareto", "quality", "scores", "acceptance")),
        *(f"figures/1-wikitext-{kind}.svg" for kind in ("pareto", "acceptance")),
    }
    for name in (name for name in files if name.endswith(".svg")):
        picture = files[name.replace(".svg", ".png")]
        assert isinstance(picture, bytes)
        assert picture.startswith(b"\x89PNG")
    assert text(build_report([load_record(folder)]), "report.html").count("<h2>") == 1


def test_shares_of_the_optimum_have_a_table(folder: Path) -> None:
    document = json.loads((folder / "run.json").read_text())
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"contender": "mmtad", "num_blocks": 4, "share": share, "geometric_share": 0.3, "smallest_share": 0.01,
           "is_optimal": 0.25, "smallest_ratio": 0.51}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document | {"shares": [row]}))
    page = text(build_report([load_record(folder)]), "report.html")
    assert "Shares of the optimum" in page
    assert "<td>0.500 [0.400, 0.600]</td><td>0.300</td><td>0.01</td><td>25%</td><td>0.51</td>" in page


def test_two_records_are_compared(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    other.mkdir()
    (other / "run.json").write_text((folder / "run.json").read_text())
    entries = [entry("mmtad", item, 1.0) for item in range(4)]
    (other / "items.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    files = build_difference(load_record(folder), load_record(other))
    assert "0.500 → 1.000" in text(files, "report.md")
    (other / "items.jsonl").write_text(json.dumps(entry("block", 1, 1.0)) + "\n")
    with pytest.raises(ConfigError, match="share no task and contender"):
        build_difference(load_record(folder), load_record(other))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"kind": "bench", "schema": 1}, "is no record for a report"),
        ({"kind": "evaluate", "schema": 99}, "has schema 99, expected 1"),
        ({"kind": "evaluate", "schema": 1}, "has no results yet"),
    ],
)
def test_other_records_are_refused(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        load_record(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_record(tmp_path / "nothing.json")


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto_front([(1, 3), (2, 2), (1.5, 2.5), (3, 4), (1, 1)]) == [(1, 1), (2, 2), (3, 4)]


def test_tables_escape_bars() -> None:
    assert to_markdown(["a"], [["x|y"]]) == "| a |\n|---|\n| x\\|y |\n"


def test_reports_load_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mtad.cli.main import main; "
        f"status = main(['report', {str(folder)!r}, '--out', {str(tmp_path / 'page')!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("report.html")
    assert (tmp_path / "page/figures/1-gsm8k-pareto.svg").exists()


def test_joules_have_a_table_figures_and_what_is_not_measured(tmp_path: Path) -> None:
    samples = [sample(label, repeat, watts) for label, watts in (("speculative", 290.0), ("mmtad", 190.0))
               for repeat in range(2)]  # fmt: skip
    phases = [phase(label, name, 4.0) for label in ("speculative", "mmtad") for name in ("draft", "score")]
    idle = {"idle": [{"seconds": 5.0, "joules": {"gpu": 300.0, "dram": 20.0}}], "skipped": {"mtjd": "no batches <b>"}}
    path = tmp_path / "energy.json"
    path.write_text(json.dumps(record(samples, phases) | idle | {"run": RUN, "models": {"target": "t"}}))
    found = load_record(path)
    files = build_report([found])
    assert "| steady | mmtad | 20.00 [20.00, 20.00] |" in text(files, "report.md")
    assert "1.50 [1.50, 1.50]" in text(files, "report.md")
    page = text(files, "report.html")
    assert (
        "Energy of GPU + DRAM, by hardware counters (zeus). At rest, with the models loaded, the same takes 64.0 W"
        in page
    )
    assert "<li>Energy of CPU package: not measured: may not be read.</li>" in page
    assert "<li>mtjd: left out; no batches &lt;b&gt;.</li>" in page
    assert {name for name in files if name.endswith(".svg")} == {
        "figures/1-workload-1-energy.svg",
        "figures/1-workload-1-phases.svg",
    }
    assert "joules per token" in text(files, "figures/1-workload-1-energy.svg")
    with pytest.raises(ConfigError, match="got an energy record"):
        build_difference(found, found)


def test_without_joules_the_figure_says_so(tmp_path: Path) -> None:
    items = [sample(label, 0, 100.0) for label in ("speculative", "mmtad")]
    for item in items:
        item["reading"] |= {"joules": {}, "idle_watts": {}}
    document = record(items, scopes=[], reason="no counter here") | {"run": RUN}
    (tmp_path / "run.json").write_text(json.dumps(document))
    files = build_report([load_record(tmp_path)])
    assert "energy not measured" in text(files, "figures/1-workload-1-energy.svg")
    assert text(files, "report.html").count("Energy: not measured: no counter here.") == 2
    assert "| steady | mmtad | not measured |" in text(files, "report.md")
