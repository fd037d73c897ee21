"""Settings that are spelled as text."""

import math

from mtad.errors import ConfigError

MAX_TREE_NODES = 64


def check_strict(kind: str) -> None:
    """Refuse what names no kind of span.

    Raises:
        ConfigError: Neither a known name nor two texts.
    """
    opener, _, closer = kind.partition(",")
    if kind not in ("code", "json") and not (opener and closer):
        raise ConfigError(f"strict must be code, json, or two texts with a comma between, got {kind!r}")


def parse_branching(text: str) -> tuple[int, ...]:
    """Read counts such as "4,2,2".

    Raises:
        ConfigError: Not whole numbers of at least 1, or a tree of too many nodes.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 2 and int(part) >= 1 for part in parts):
        raise ConfigError(
            f"branching must be whole numbers from 1 to 64 with commas between, such as 4,2,2, got {text!r}"
        )
    counts = tuple(int(part) for part in parts)
    num_nodes, level = 0, 1
    for count in counts:
        level *= count
        num_nodes += level
    if num_nodes > MAX_TREE_NODES:
        raise ConfigError(
            f"branching must make <= {MAX_TREE_NODES} tree nodes, got {text!r}; lower a count or drop one"
        )
    return counts


def parse_logit_bias(texts: tuple[str, ...]) -> dict[int, float]:
    """Read pairs such as "17:-5,42:2.5".

    Raises:
        ConfigError: Not a token id and a number below infinity.
    """
    biases = {}
    for pair in (part.strip() for text in texts for part in text.split(",")):
        token, separator, value = pair.partition(":")
        try:
            biases[int(token)] = number = float(value)
        except ValueError:
            number = math.nan
        if not separator or not token.strip().isdecimal() or not number < math.inf:
            raise ConfigError(
                f"logit_bias must be token ids with a number each, such as 17:-5,42:2.5 or 17:-inf, got {pair!r}"
            )
    return biases
