"""Exhausted memory as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtad.errors import CapacityError


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the many faces of exhausted memory into one.

    Raises:
        CapacityError: The block ran out of memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory() from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise _out_of_memory() from error
        raise


def _out_of_memory() -> CapacityError:
    return CapacityError(
        "out of memory while decoding; lower --batch-size, --max-new-tokens, --gamma or --beam-width, "
        "or shorten the prompts"
    )
