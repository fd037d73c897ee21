"""Emitted tokens stay what they are; `streams.py` says how to change them on purpose."""

import json

from tests.golden.streams import STREAMS_FILE, all_streams


def test_every_method_still_emits_the_recorded_tokens() -> None:
    recorded = json.loads(STREAMS_FILE.read_text(encoding="utf-8"))
    found = all_streams()
    assert list(found) == list(recorded)
    for name, tokens in found.items():
        assert tokens == recorded[name], name
