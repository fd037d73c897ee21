"""How many operations an iteration launches between its model calls: each is a kernel on a GPU."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.tiny_models import EOS, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from mtad.config import GenerationOptions
from mtad.decoding import build_decoder
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import RowSettings

# What looks at memory that is there, or takes some, launches nothing.
VIEWS = frozenset(
    """alias as_strided detach detach_ diagonal empty empty_like empty_strided expand expand_as flatten lift_fresh
    new_empty permute select slice split squeeze t transpose unbind unflatten unsqueeze view view_as
    _record_function_enter_new _record_function_exit _reshape_alias _unsafe_view""".split()  # noqa: SIM905
)
MAYBE_VIEWS = frozenset({"contiguous", "reshape", "to"})


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute something, while it is not paused."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.is_paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").removeprefix("profiler::").split(".")[0]
        is_view = name in VIEWS or (name in MAYBE_VIEWS and result.data_ptr() == args[0].data_ptr())
        if not is_view and not self.is_paused:
            self.counts[name] += 1
        return result

    def pausing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, uncounted."""

        def paused(*arguments: Any) -> Any:
            self.is_paused = True
            result = call(*arguments)
            self.is_paused = False
            return result

        return paused


@pytest.mark.parametrize(
    ("method", "draw", "most"),
    [
        ("autoregressive", "top", 115),
        ("speculative", "top", 300),
        ("mtad", "top", 360),
        ("mmtad", "top", 335),
        ("mmtad", "gumbel", 540),
    ],
)
def test_an_iteration_launches_few_operations_between_its_model_calls(method: str, draw: Any, most: int) -> None:
    runners = [TransformersRunner(tiny_model(seed=seed)) for seed in (0, 1)]
    for runner in runners:
        runner.attach()
    options = GenerationOptions(method=method, draw=draw, gamma=4, beam_width=4)
    decoder = build_decoder(options, runners[0], runners[1], frozenset({EOS}), temperature=1.0)
    decoder.prefill([[5, 6, 7, 8]], [RowSettings(seed=0, temperature=1.0, top_k=10, top_p=0.9)], [40])
    for _ in range(2):
        decoder.step([True])
    counting = Counting()
    with pytest.MonkeyPatch.context() as patch:
        for runner in runners:
            for name in ("forward", "_move_slots"):
                patch.setattr(runner, name, counting.pausing(getattr(runner, name)))
        with counting:
            decoder.step([True])
    assert sum(counting.counts.values()) <= most, counting.counts.most_common()
