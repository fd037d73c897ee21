"""Linear layers that read the same input, their weights side by side in one matrix without a second copy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Several linear layers as one.

    Attributes:
        weight: `[all out_features, in_features]`; the layers' weights are its rows.
        bias: `[all out_features]`, or None.
    """

    weight: Tensor
    bias: Tensor | None


@torch.no_grad()
def pack_rows(linears: Sequence[nn.Linear]) -> PackedRows:
    """Put the layers' weights into one matrix and make the layers' parameters views of it.

    Layers that lie so already are left as they are. The layers compute what they did; only where their weights lie has
    changed.

    Args:
        linears: Plain layers of one input width, dtype and device, all with a bias or none.
    """
    weight = _joined([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return PackedRows(weight, _joined(biases) if biases else None)


def can_pack_rows(linears: Sequence[nn.Module]) -> bool:
    """Whether the layers are plain ones that `pack_rows` takes."""
    plain = [linear for linear in linears if type(linear) is nn.Linear and type(linear.weight.data) is Tensor]
    alike = {(linear.in_features, linear.bias is None, linear.weight.dtype, linear.weight.device) for linear in plain}
    return len(plain) == len(linears) and len(alike) == 1 and all(linear.weight.is_contiguous() for linear in plain)


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    first = parameters[0]
    shape = (sum(len(parameter) for parameter in parameters), *first.shape[1:])
    if _are_neighbours(parameters):
        return first.detach().as_strided(shape, first.stride(), first.storage_offset())
    joined = torch.cat([parameter.detach() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = joined[start : start + len(parameter)]
        start += len(parameter)
    if joined.is_cuda:
        # The pieces just freed are too small for the next layer's matrix; kept, they would double the model.
        torch.cuda.empty_cache()
    return joined


def _are_neighbours(parameters: Sequence[Tensor]) -> bool:
    """Whether each parameter lies right behind the one before it, in one piece of memory."""
    storage = parameters[0].untyped_storage().data_ptr()
    place = parameters[0].data_ptr()
    for parameter in parameters:
        if parameter.untyped_storage().data_ptr() != storage or parameter.data_ptr() != place:
            return False
        place += parameter.nbytes
    return True
