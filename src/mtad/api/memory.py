"""Exhausted memory as one sentence, with the numbers that make it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch

from mtad.errors import CapacityError, spell_bytes
from mtad.models.row_state import RowState


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """What the caches of a batch take.

    Attributes:
        num_rows: Answers decoded at a time.
        num_tokens: Tokens of a row: prompt, answer, and room for the draft.
        num_bytes: Keys and values of all models; 0 where that is not known.
    """

    num_rows: int
    num_tokens: int
    num_bytes: int

    @classmethod
    def of(cls, states: Sequence[RowState], num_rows: int, num_tokens: int) -> Self:
        """The size of these memories together, one that several share counted once."""
        token_bytes = sum({id(state.storage): state.slot_bytes for state in states}.values())
        return cls(num_rows=num_rows, num_tokens=num_tokens, num_bytes=num_rows * num_tokens * token_bytes)

    def __str__(self) -> str:
        return f"{self.num_rows:,} rows of {self.num_tokens:,} tokens need {spell_bytes(self.num_bytes)}"


@contextmanager
def memory_errors(size: CacheSize | None = None) -> Iterator[None]:
    """Turn the many faces of exhausted memory into one.

    Args:
        size: What the caches take; None where there are none.

    Raises:
        CapacityError: The block ran out of memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory(size) from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise _out_of_memory(size) from error
        raise


def _out_of_memory(size: CacheSize | None) -> CapacityError:
    numbers = f" ({size} for the caches)" if size is not None and size.num_bytes else ""
    return CapacityError(
        "out of memory while decoding; lower --batch-size, --max-new-tokens, --gamma or --beam-width, "
        f"or shorten the prompts{numbers}"
    )
