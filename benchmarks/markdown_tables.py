"""Tables in Markdown, with their caption and the record that they come from."""

from collections.abc import Iterable, Sequence


def markdown_table(rows: Iterable[Sequence[str]], caption: str) -> str:
    """Lines of cells, headings first, and what was measured below them."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{caption}"


def record_link(name: str) -> str:
    """Where a document says that a record lies."""
    return f"Record: [{name}](../benchmarks/records/{name})."
