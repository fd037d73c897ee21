"""An iteration on a device without values touches nothing on the host: no copies, no reads, no shapes from values.

PyTorch's meta device knows shapes alone, so whatever asks it for a value fails, as it would under capture.
"""

from typing import Any

import pytest
import torch
from tests.tiny_models import EOS, tiny_model
from tests.unit.decoding.test_captured import PAIRS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtad.config import GenerationOptions
from mtad.decoding import build_decoder
from mtad.decoding.assisted import AssistedDecoder
from mtad.models.transformers_runner import TransformersRunner
from mtad.structures import RowControls, RowSettings

FILTERS = {
    "top-k and top-p": RowSettings(top_k=8, top_p=0.9),
    "top-p and min-p": RowSettings(top_p=0.9, min_p=0.01),
    "confidence": RowSettings(draft_confidence=0.1),
}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that sees a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_host: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.on_host.add(func.name())
        return result


@pytest.fixture(scope="module")
def imagined() -> tuple[TransformersRunner, TransformersRunner]:
    """Two models whose tensors have shapes and a device and no values."""
    runners = []
    for _ in range(2):
        runner = TransformersRunner(tiny_model(dtype=torch.bfloat16).to("meta"))
        runner.attach()
        runners.append(runner)
    return runners[0], runners[1]


@pytest.mark.parametrize("filters", list(FILTERS))
@pytest.mark.parametrize(("drafter", "verifier"), PAIRS, ids=lambda name: name)
def test_an_iteration_stays_on_the_device(
    imagined: tuple[TransformersRunner, TransformersRunner], drafter: str, verifier: str, filters: str
) -> None:
    options = GenerationOptions(drafter=drafter, verifier=verifier, gamma=2, beam_width=2, branching="2,2")
    decoder = build_decoder(options, *imagined, frozenset({EOS}), temperature=1.0)
    assert isinstance(decoder, AssistedDecoder)
    for runner, _ in decoder._runners:
        runner.allocate(3, 100)
        runner.fix_shapes()
    decoder.pending = decoder.previous = torch.ones(3, dtype=torch.int64, device="meta")
    one_hot = decoder.verifier.is_lossless
    decoder.rows = RowControls.from_settings([FILTERS[filters]] * 3, one_hot_at_zero=one_hot, device="meta")
    active = torch.ones(3, dtype=torch.bool, device="meta")
    with torch.inference_mode(), _Watch() as watch:
        packed = decoder._iterate(active)
    assert packed.device.type == "meta"
    assert packed.dtype == torch.float64
    assert not watch.on_host
