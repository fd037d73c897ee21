"""A PEFT adapter is merged into the weights of its base model."""

from pathlib import Path
from typing import Any

import torch

from mtad.errors import ModelLoadError
from mtad.models.checkpoints import loading_errors
from mtad.models.quiet import quiet_libraries

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"


def resolve_adapter(name_or_path: str) -> Path | str:
    """The folder of an adapter, or its hub id.

    Raises:
        ModelLoadError: A folder is there but holds no adapter, or a path leads nowhere.
    """
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        if path.exists() or path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
            raise ModelLoadError(
                f"got adapter {name_or_path!r}, but there is no such folder; name the folder of a PEFT adapter"
            )
        return name_or_path
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise ModelLoadError(
                f"got adapter {path} without {name}, expected a PEFT adapter; name a folder that PEFT saved"
            )
    return path


def merge_adapter(model: Any, adapter: Path | str, dtype: torch.dtype) -> Any:
    """Add an adapter's update to the weights.

    Args:
        model: The base model in at least float32, so that small updates are not rounded away; changed in place.
        adapter: Folder or hub id.
        dtype: Of the merged weights.

    Returns:
        The plain base model with merged weights in `dtype`.

    Raises:
        ModelLoadError: The adapter is damaged, cannot be merged, or was made for another model.
    """
    from peft import PeftConfig, PeftModel

    with quiet_libraries(), loading_errors("adapter", adapter):
        config = PeftConfig.from_pretrained(str(adapter))
        if config.is_prompt_learning:
            raise ModelLoadError(
                f"got adapter {str(adapter)!r} of type {config.peft_type.value}, expected one that can be merged into "
                "the weights, such as LoRA; merge or distil it first"
            )
        wrapped = PeftModel(model, config)
        report = wrapped.load_adapter(str(adapter), "default", torch_device=str(model.device))
        strays = sorted([*report.missing_keys, *report.unexpected_keys])
        if strays:
            raise ModelLoadError(
                f"got adapter {str(adapter)!r} that does not fit {type(model).__name__} ({len(strays)} weights differ, "
                f"first: {strays[0]}), expected one for this target; name its base model "
                f"({config.base_model_name_or_path}) as the target"
            )
        return wrapped.merge_and_unload().to(dtype).requires_grad_(False)
