"""Linear layers of a CPU model with weights in the layout that its matrix kernels want."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_TYPICAL_TOKENS = 16
"""Tokens of a call that the layout is chosen for; any other number works too."""
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are given the same input, one right after the other."""


class PackedLinear(nn.Module):
    """A linear layer whose 16-bit weight was reordered once for oneDNN; it cannot be trained or moved.

    The same product as `nn.Linear`, which reorders its weight at every call: 1.3 to 1.6 times as fast for the few
    tokens of a decoding step.

    Args:
        linear: The layer to take weight and bias from, on the CPU; it is left as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_TOKENS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the layer's 16-bit dtype."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return product


class _JointProduct:
    """One product for several layers that read the same input; whoever asks first computes it for all."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        weights = torch.cat([linear.weight.detach() for linear in linears])
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weights, _TYPICAL_TOKENS)
        self._bias = torch.cat(biases) if biases else None
        self._sizes = [linear.out_features for linear in linears]
        self._inputs: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def take(self, index: int, inputs: Tensor) -> Tensor:
        """The product of layer `index`; it is handed out once, so that a changed input is never mistaken for this."""
        if inputs is not self._inputs or index not in self._waiting:
            joint = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
            self._inputs, self._waiting = inputs, dict(enumerate(joint.split(self._sizes, -1)))
        product = self._waiting.pop(index)
        if not self._waiting:
            self._inputs = None
        return product


class PackedSibling(nn.Module):
    """One of several linear layers whose products are computed together; as `PackedLinear` otherwise.

    Its output may be a view of the joint product, contiguous in the last dimension alone.
    """

    def __init__(self, joint: _JointProduct, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._joint, self._index = joint, index

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the layer's 16-bit dtype."""
        return self._joint.take(self._index, inputs)


def pack_linears(model: nn.Module) -> int:
    """Replace, in place, the 16-bit linear layers on a CPU that multiplies that width natively.

    Queries, keys and values become one product, and so do the two inner layers of a gated MLP. Weights of other
    widths, on other devices, and layers that are more than a plain `nn.Linear` stay as they are. A weight that is
    shared with the embeddings stays there and is kept a second time, packed.

    Args:
        model: Any model whose weights are final.

    Returns:
        How many layers were replaced.
    """
    num_joined = sum(_join_siblings(parent) for parent in list(model.modules()))
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    packable = [(name, module) for name, module in found if _can_pack(module)]
    for name, module in packable:
        model.set_submodule(name, PackedLinear(module))
    return num_joined + len(packable)


def _join_siblings(parent: nn.Module) -> int:
    """Replace layers of one module that read the same input; returns how many."""
    count = 0
    for names in _SIBLINGS:
        linears = [getattr(parent, name, None) for name in names]
        plain = [linear for linear in linears if isinstance(linear, nn.Linear) and _can_pack(linear)]
        alike = {(linear.in_features, linear.bias is None, linear.weight.dtype) for linear in plain}
        if len(plain) < len(names) or len(alike) > 1:
            continue
        joint = _JointProduct(plain)
        for index, (name, linear) in enumerate(zip(names, plain, strict=True)):
            setattr(parent, name, PackedSibling(joint, index, linear))
        count += len(plain)
    return count


def has_packed_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies a dtype of 16 bits in hardware here; False for wider ones."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False


def _can_pack(module: nn.Linear) -> bool:
    """Whether a layer is nothing but a product, here, in a width that gains; accelerate's hooks would be lost."""
    # A quantised weight is a tensor of another class, whatever dtype it claims.
    is_plain = type(module) is nn.Linear and type(module.weight.data) is Tensor and not hasattr(module, "_hf_hook")
    return is_plain and module.weight.device.type == "cpu" and has_packed_kernels(module.weight.dtype)
