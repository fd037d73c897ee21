"""Words become contenders: `block`, `joint@beam`, `mmtad:threshold=0.9,gamma=6`, `all`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mtad.config import (
    METHOD_NAMES,
    RULE_OPTIONS,
    VERIFIER_NAMES,
    GenerationOptions,
    Setting,
    replace_settings,
    setting_fields,
)
from mtad.decoding import build_rule, check_rule_options, fitting_drafters, resolve_pair
from mtad.errors import ConfigError
from mtad.results.comparison import BASELINE

_HOST = "mmtad"


Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of a comparison: its label and the settings that make it what it is."""

    label: str
    options: GenerationOptions

    @property
    def is_lossless(self) -> bool | None:
        """Whether its rule keeps the target's law; None for methods without a rule."""
        pair = resolve_pair(self.options)
        return None if pair is None else build_rule(pair.verifier, self.options).is_lossless


def in_turns(entries: Sequence[Entry], turn: int) -> list[Entry]:
    """All entries, each turn another one first, so that a machine that slows down or warms up treats all alike."""
    first = turn % max(len(entries), 1)
    return [*entries[first:], *entries[:first]]


def parse_contenders(words: Sequence[str], base: GenerationOptions) -> list[Contender]:
    """The contenders that the words name, each once, in order.

    A word is a rule, a rule with a drafter (`joint@beam`), or a method; settings of its own follow a colon. `all`
    stands for single-token sampling, every rule with the first of its drafters, the joint rule on a chain, and the two
    methods that keep several texts.

    Args:
        words: At least one.
        base: Settings that all contenders share.

    Raises:
        ConfigError: An unknown name, setting or value, or parts that do not fit.
    """
    spelled = [part for word in words for part in (_everything() if word == "all" else [word])]
    found: dict[str, Contender] = {}
    for word in spelled:
        found.setdefault(word, _parse(word, base))
    return list(found.values())


def spread_thresholds(contenders: Sequence[Contender], thresholds: Sequence[float]) -> list[Contender]:
    """Each contender whose rule reads the threshold once per threshold, unless it names its own.

    Raises:
        ConfigError: A threshold is out of its bounds.
    """
    spelled: list[Contender] = []
    for item in contenders:
        if not thresholds or "threshold=" in item.label or not _reads_threshold(item.options):
            spelled.append(item)
            continue
        for threshold in thresholds:
            options = replace_settings(item.options, {"threshold": threshold}, "thresholds")
            joint = "," if ":" in item.label else ":"
            spelled.append(Contender(f"{item.label}{joint}threshold={threshold:g}", options))
    return spelled


def _reads_threshold(options: GenerationOptions) -> bool:
    pair = resolve_pair(options)
    return pair is not None and "threshold" in RULE_OPTIONS.get(pair.verifier, ())


def _everything() -> Iterable[str]:
    yield BASELINE
    for name in VERIFIER_NAMES:
        if name != "target_only":
            if name == "joint":
                yield "joint@beam"
            yield f"{name}@{fitting_drafters(name)[0]}"
    yield "beam_sampling"
    yield "dynamic_beam"


def _parse(word: str, base: GenerationOptions) -> Contender:
    name, _, settings = word.partition(":")
    changes = _settings(settings, word) | _parts(name, word)
    options = replace_settings(base, changes, word)
    check_rule_options(options, changes)
    return Contender(word, options)


def _parts(name: str, word: str) -> dict[str, Any]:
    rule, _, drafter = name.partition("@")
    if rule in METHOD_NAMES and not drafter:
        return {"method": rule, "drafter": None, "verifier": None}
    if rule not in VERIFIER_NAMES:
        raise ConfigError(
            f"unknown rule {rule!r} in {word!r}; known are all, the methods {', '.join(METHOD_NAMES)}, "
            f"and the rules {', '.join(VERIFIER_NAMES)}"
        )
    return {"method": _HOST, "drafter": drafter or fitting_drafters(rule)[0], "verifier": rule}


def _settings(text: str, word: str) -> dict[str, Any]:
    known = {item.name: item for item in setting_fields(GenerationOptions)}
    changes = {}
    for part in filter(None, text.split(",")):
        name, separator, value = part.partition("=")
        if not separator or name not in known:
            raise ConfigError(f"got {part!r} in {word!r}, expected SETTING=VALUE, such as joint:threshold=0.9,gamma=4")
        changes[name] = _value(known[name], value)
    return changes


def _value(item: Setting, text: str) -> Any:
    """The value in the setting's own type; what is none stays text, which the setting's check refuses."""
    if item.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if item.type in (int, float):
        try:
            return item.type(text)
        except ValueError:
            return text
    return text
