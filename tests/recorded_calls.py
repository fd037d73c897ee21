"""A CUDA graph for the CPU: the operations of a call, recorded once and replayed into the same memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "equal", "bincount")
"""Operations that wait for the device or copy from pageable memory: what a capture forbids."""


class HostReadError(RuntimeError):
    """The call asked the device something."""


@dataclass
class RecordedCall(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a call once on the side and remembers every operation with the very tensors it worked on."""

    steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func.name().removeprefix("aten::")
        if name.startswith(HOST_READS) or name == "repeat_interleave.Tensor":
            raise HostReadError(f"{name} reads from the device")
        result = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Do everything again; each result goes to the memory it had the first time."""
        for func, args, kwargs, result in self.steps:
            if func._schema.is_mutable:
                func(*args, **kwargs)
                continue
            inputs = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
            outputs = list(_tensors(result))
            if all(output.untyped_storage().data_ptr() in inputs for output in outputs):
                continue
            for output, again in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
                output.copy_(again)


def record_call(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What `capture_cuda_graph` does, for a call on the CPU: nothing has happened until the replay."""
    recorded = RecordedCall()
    with recorded:
        output = call()
    recorded_once = [recorded]

    def replay() -> Tensor:
        # Recording has done the work once already.
        if recorded_once:
            recorded_once.clear()
        else:
            recorded.replay()
        return output

    return replay


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
