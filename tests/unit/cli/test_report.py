"""`mtad report` refuses in one sentence."""

from tests.unit.cli.conftest import RunCommand, only_sentence


def test_bad_input_is_one_sentence(command: RunCommand) -> None:
    only_sentence(command("report", "/nowhere.json"), "record /nowhere.json cannot be read")
    only_sentence(command("report", "a", "--diff"), "--diff compares two records, got 1")
