"""Functions of tensors between the calls of the models, which a compiler may take over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class CallTaker(Protocol):
    """Computes marked functions in its own way, with the same results up to rounding."""

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What the function would return; those that it calls are not taken over one by one."""
        ...


_TAKER: ContextVar[CallTaker | None] = ContextVar("taker", default=None)
_IS_TRACED: ContextVar[bool] = ContextVar("is_traced", default=False)


def between_calls(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Mark a function that runs between the calls of the models.

    It takes positional arguments alone, changes none of them, reads no tensor's value on the host, and its result
    depends on nothing else: tensors, numbers, and objects made of these.
    """

    @wraps(function)
    def called(*arguments: Parameters.args, **none: Parameters.kwargs) -> Result:
        taker = _TAKER.get()
        if taker is None or none:
            return function(*arguments, **none)
        result: Result = taker.call(function, arguments)
        return result

    return called


@contextmanager
def taken_by(taker: CallTaker | None) -> Iterator[None]:
    """Let marked functions be computed by `taker` inside the block; as they are written for None."""
    before = _TAKER.set(taker)
    try:
        yield
    finally:
        _TAKER.reset(before)


@contextmanager
def traced() -> Iterator[None]:
    """Say inside the block that a compiler is being shown what a function does."""
    before = _IS_TRACED.set(True)
    try:
        with taken_by(None):
            yield
    finally:
        _IS_TRACED.reset(before)


def is_traced() -> bool:
    """Whether a compiler is being shown what happens: no value can be looked at, and small tensors cost nothing."""
    return _IS_TRACED.get()
