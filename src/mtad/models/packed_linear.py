"""Linear layers of a CPU model with weights in the layout that its matrix kernels want."""

import torch
from torch import Tensor, nn

_TYPICAL_TOKENS = 16
"""Tokens of a call that the layout is chosen for; any other number works too."""


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


def pack_linears(model: nn.Module) -> int:
    """Replace, in place, the 16-bit linear layers on a CPU that multiplies that width natively.

    Weights of other widths, on other devices, and layers that are more than a plain `nn.Linear` stay as they are. A
    weight that is shared with the embeddings stays there and is kept a second time, packed.

    Args:
        model: Any model whose weights are final.

    Returns:
        How many layers were replaced.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    packable = [(name, module) for name, module in found if _can_pack(module)]
    for name, module in packable:
        model.set_submodule(name, PackedLinear(module))
    return len(packable)


def has_packed_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies a dtype of 16 bits in hardware here; False for wider ones."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False


def _can_pack(module: nn.Linear) -> bool:
    """Whether a layer is nothing but a product, here, in a width that gains; accelerate's hooks would be lost."""
    is_plain = type(module) is nn.Linear and not hasattr(module, "_hf_hook")
    return is_plain and module.weight.device.type == "cpu" and has_packed_kernels(module.weight.dtype)
