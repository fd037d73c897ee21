"""Linear layers of a CPU model with 8-bit weights."""

import ctypes

import torch
from torch import Tensor, nn

from mtad.models.kernels.building import cpu_kernels

TILE = 32
"""Outputs that lie together in the kernel's layout."""
GROUP = 64
"""Inputs of a token that share a scale, and the multiple that inputs are padded to."""
_OFFSET = 128


class KernelLinear(ctypes.Structure):
    """How the kernels see a layer."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_inputs", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
    )


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit weights `[outputs, inputs]` and the scale of each output, `[outputs]` float32: weight = byte * scale."""
    wide = weight.detach().float()
    scales = wide.abs().amax(-1) / 127
    bytes_ = (wide / scales.clamp_min(1e-30).unsqueeze(-1)).round_().to(torch.int8)
    return bytes_, scales


class Int8Linear(nn.Module):
    """A linear layer with a byte for each weight and a scale for each output; it cannot be trained or moved.

    With the compiled kernels the tokens become bytes too, with a scale for every 64 inputs of every token, so that no
    token depends on its neighbours. Without them the weights alone are bytes.

    Args:
        linear: The layer to take weight and bias from, on the CPU; it is left as it is.
        kernels: The compiled kernels, or None.
    """

    def __init__(self, linear: nn.Linear, kernels: ctypes.CDLL | None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kernels = kernels
        weights, scales = quantise_weight(linear.weight)
        bias = None if linear.bias is None else linear.bias.detach().float()
        if kernels is not None:
            missing = -self.out_features % TILE
            weights, scales = _tiles(weights), nn.functional.pad(scales, (0, missing))
            bias = None if bias is None else nn.functional.pad(bias, (0, missing))
        self._weights, self._scales, self._bias = weights, scales, bias

    @property
    def weight_bytes(self) -> int:
        """What a product reads."""
        return self.in_features * self.out_features

    @property
    def kernel_view(self) -> KernelLinear:
        """The layer as the kernels see it; good for as long as the layer is there."""
        return KernelLinear(
            self._weights.data_ptr(),
            self._scales.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            self.in_features,
            self.out_features,
        )

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the inputs' dtype."""
        tokens = inputs.reshape(-1, self.in_features).float().contiguous()
        product = self._plain_product(tokens) if self.kernels is None else self._kernel_product(self.kernels, tokens)
        return product.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _kernel_product(self, kernels: ctypes.CDLL, tokens: Tensor) -> Tensor:
        product = tokens.new_empty(len(tokens), self.out_features)
        kernels.mtad_int8_linear(
            ctypes.byref(self.kernel_view),
            ctypes.c_void_p(tokens.data_ptr()),
            ctypes.c_void_p(product.data_ptr()),
            ctypes.c_int64(len(tokens)),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return product

    def _plain_product(self, tokens: Tensor) -> Tensor:
        if len(tokens) == 1:
            product: Tensor = torch._weight_int8pack_mm(tokens, self._weights, self._scales)
        else:
            # For more tokens that kernel takes longer than writing the weights out.
            product = nn.functional.linear(tokens, self._weights.float()).mul_(self._scales)
        return product if self._bias is None else product.add_(self._bias)


def _tiles(weights: Tensor) -> Tensor:
    """Weights in the kernel's layout, `[outputs / TILE, inputs / 4, TILE, 4]` uint8, padded with zeros."""
    outputs, inputs = weights.shape
    padded = nn.functional.pad(weights, (0, -inputs % GROUP, 0, -outputs % TILE))
    unsigned = padded.view(torch.uint8) ^ _OFFSET
    return unsigned.view(-1, TILE, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()


def quantise_linears(model: nn.Module, kernels: ctypes.CDLL | None = None) -> int:
    """Replace, in place, the linear layers of a model on the CPU; embeddings stay as they are.

    A weight that is shared with the embeddings stays there and is kept a second time, in bytes.

    Args:
        model: Any model whose weights are final.
        kernels: The compiled kernels; those of this machine when None.

    Returns:
        How many layers were replaced.
    """
    kernels = kernels or cpu_kernels()
    count = 0
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not hasattr(module, "_hf_hook") and module.weight.device.type == "cpu":
            model.set_submodule(name, Int8Linear(module, kernels))
            count += 1
    return count
