"""Arguments of a step's functions, taken apart into tensors and the rest, and put together again."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from torch import Tensor

Shapes = tuple[tuple[Any, ...], ...]
"""Shape, strides, dtype and device of tensors."""
Spec = tuple[Any, ...]
"""Everything about a value but its tensors; equal specs take the same tensors. Hashable."""

_PLAIN = (bool, int, float, str, Enum)
_LEAF: Spec = ("tensor",)


def take_apart(value: Any, tensors: list[Tensor]) -> Spec:
    """Append the tensors of a value to `tensors` and return the rest.

    Args:
        value: A tensor, None, a number, a text, a tuple or list of values, or an object whose attributes are values.
        tensors: Tensors so far.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return _LEAF
    if value is None or isinstance(value, _PLAIN):
        # One and True are equal and make other programs.
        return ("plain", type(value), value)
    if isinstance(value, (tuple, list)):
        return (type(value), tuple(take_apart(item, tensors) for item in value))
    names = _names(value)
    return (type(value), names, tuple(take_apart(getattr(value, name), tensors) for name in names))


def put_together(spec: Spec, tensors: Iterator[Tensor]) -> Any:
    """The value that `take_apart` made `spec` of, with other tensors."""
    if spec == _LEAF:
        return next(tensors)
    if spec[0] == "plain":
        return spec[2]
    kind, *_, parts = spec
    values = [put_together(part, tensors) for part in parts]
    if kind in (tuple, list):
        return kind(values)
    built = object.__new__(kind)
    for name, value in zip(spec[1], values, strict=True):
        object.__setattr__(built, name, value)
    return built


def shapes_of(tensors: Sequence[Tensor]) -> Shapes:
    """How tensors lie in memory; programs are made for one way."""
    return tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(item.name for item in fields(value)) if is_dataclass(value) else tuple(vars(value))
