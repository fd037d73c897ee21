"""`mtad report`: records become one page, tables and figures."""

import argparse
from pathlib import Path
from typing import Any

from mtad.errors import ConfigError

DESCRIPTION = """Make one page, which needs nothing else, from the records of evaluations,
experiments and comparisons; with Markdown and CSV tables and SVG figures."""

EXAMPLES = """examples:
  mtad report runs/quality runs/dial --out report
  mtad report compare.json --out report
  mtad report --diff runs/before runs/after --out difference

The folder gets report.html, report.md, report.csv and figures/*.svg. Figures need
matplotlib (pip install 'mtad[report]').
"""


def add_command(commands: Any) -> None:
    """Add the `report` subcommand."""
    parser = commands.add_parser(
        "report",
        help="make a page from records",
        usage="%(prog)s RECORD [RECORD ...] [--out DIR]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD", help="folder of a run, or a record's file")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("report"), metavar="DIR", help="folder (default: report)"
    )
    parser.add_argument("--diff", action="store_true", help="compare two records row by row")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    from mtad.report.building import build_difference, build_report, write_files
    from mtad.report.loading import load_record

    if options.diff and len(options.records) != 2:
        raise ConfigError(f"--diff compares two records, got {len(options.records)}; name two")
    records = [load_record(path) for path in options.records]
    files = build_difference(*records) if options.diff else build_report(records)
    write_files(options.out, files)
    print(options.out / "report.html")
    return 0
