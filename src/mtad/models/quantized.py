"""Checkpoints that were quantised before they were saved."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mtad.errors import ModelLoadError

PACKAGES = {
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "torchao": ("torchao", "torchao"),
}
"""Module and package that transformers needs for the weights of each `quant_method`."""


def quantization_method(config: Any) -> str | None:
    """How a checkpoint's weights are quantised, as its configuration says; None where they are not."""
    stated = getattr(config, "quantization_config", None)
    if not stated:
        return None
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    if method is None and isinstance(stated, dict) and (stated.get("load_in_8bit") or stated.get("load_in_4bit")):
        # bitsandbytes did not always write its name.
        return "bitsandbytes"
    return None if method is None else str(getattr(method, "value", method))


def check_quantization(config: Any, role: str, source: Path | str) -> None:
    """Find out before any weight is read whether quantised weights can be.

    Raises:
        ModelLoadError: The package that reads them is not installed.
    """
    method = quantization_method(config)
    if method in PACKAGES:
        module, package = PACKAGES[method]
        if find_spec(module) is None:
            raise ModelLoadError(
                f"got {role} {str(source)!r} with weights quantised by {method}, which are read with the package "
                f"{package}; install it with pip install {package}, or name a {role} that is not quantised"
            )
