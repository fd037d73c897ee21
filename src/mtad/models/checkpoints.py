"""One checkpoint, from a folder or the hub, becomes a causal language model; every failure becomes one sentence."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from mtad.errors import CapacityError, ModelLoadError
from mtad.models.architecture import check_architecture
from mtad.models.quantized import check_quantization
from mtad.models.quiet import quiet_libraries

LOADER_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
"""What transformers, PEFT and safetensors raise for files they cannot use."""


@contextmanager
def loading_errors(what: str, source: Path | str) -> Iterator[None]:
    """Turn what the libraries raise inside the block into one sentence, without their tracebacks.

    Args:
        what: What is being loaded, for example `target model`.
        source: Folder or hub id.

    Raises:
        ModelLoadError: The files are missing, damaged or not what was expected.
        CapacityError: The memory is not there.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise _out_of_memory(what, source) from None
    except LOADER_ERRORS as error:
        if "allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise _out_of_memory(what, source) from None
        raise _load_error(what, source, error) from None


def read_model_config(source: Path | str, role: str, revision: str | None = None) -> Any:
    """The configuration of a checkpoint that can be served.

    Raises:
        ModelLoadError: There is none, it is not a decoder-only causal language model, or its weights are quantised and
            the package that reads them is not there.
    """
    if isinstance(source, Path):
        _check_folder(source, role)
    with quiet_libraries(), loading_errors(f"{role} model", source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None and not config.is_encoder_decoder:
        raise ModelLoadError(
            f"got {role} {str(source)!r} of type {config.model_type}, expected a causal language model; "
            "name a decoder-only text model such as Llama, Qwen or GPT-2"
        )
    check_architecture(model_class or type(config), config)
    check_quantization(config, role, source)
    return config


def load_causal_model(
    source: Path | str,
    role: str,
    config: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    device_map: str | None = None,
    revision: str | None = None,
) -> Any:
    """Load the weights, from safetensors only and straight to their place.

    Args:
        source: Folder or hub id.
        role: `target` or `draft`, for errors.
        config: What `read_model_config` returned.
        dtype: Of the weights.
        device: Where they go.
        device_map: Spread them over devices as accelerate does, instead.
        revision: Hub revision.

    Raises:
        ModelLoadError: Weights are missing, damaged or do not fit the configuration.
        CapacityError: The memory is not there.
    """
    placement = device_map or (str(device) if device.type == "cuda" else None)
    with quiet_libraries(), loading_errors(f"{role} model", source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map=placement,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one sentence
        )
    model, report = loaded
    _check_report(report, type(model).__name__, source, role)
    return model.requires_grad_(False)


def _check_report(report: dict[str, Any], model_name: str, source: Path | str, role: str) -> None:
    """Raise unless every weight of the model was in the checkpoint, in its shape."""
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        raise ModelLoadError(
            f"got {role} {str(source)!r} whose {name} has shape {tuple(found)}, expected {tuple(expected)} by its "
            "config.json; copy or download the model again"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"got {role} {str(source)!r} without {len(missing)} of its weights (first: {missing[0]}), expected a whole "
            f"{model_name}; copy or download the model again"
        )


def _check_folder(folder: Path, role: str) -> None:
    """Find out early, and in plain words, what a folder lacks."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelLoadError(
                f"got a PEFT adapter in {folder}, expected a whole {role} model; "
                "name its base model as the target and this folder as --adapter"
            )
        raise ModelLoadError(
            f"got the folder {folder} without a config.json, expected a {role} model; name a folder that "
            "save_pretrained wrote"
        )
    wanted = _weight_files(folder)
    if not wanted:
        pickled = " in safetensors format" if any(folder.glob("*.bin")) else ""
        raise ModelLoadError(
            f"got {folder} without weights{pickled}, expected model.safetensors; "
            "copy or download the model again, or save it with save_pretrained"
        )
    absent = sorted(name for name in wanted if not (folder / name).is_file())
    if absent:
        raise ModelLoadError(
            f"got {folder} without {absent[0]}, expected {len(wanted)} weight files; copy or download the model again"
        )


def _weight_files(folder: Path) -> set[str]:
    """Names of the safetensors files a folder should hold; empty where it has none."""
    if (folder / "model.safetensors").is_file():
        return {"model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    with loading_errors("weight index", index):
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def _load_error(what: str, source: Path | str, error: Exception) -> ModelLoadError:
    if isinstance(source, Path):
        return ModelLoadError(
            f"got a {what} in {source} that cannot be used ({_first_sentence(error)}); "
            "copy or download it again, or name another"
        )
    if isinstance(error, GatedRepoError) or isinstance(error.__cause__, GatedRepoError):
        return ModelLoadError(
            f"got the {what} {source!r}, which needs permission; accept its licence on the hub and run `hf auth login`"
        )
    if isinstance(error, OSError):
        return ModelLoadError(
            f"got the {what} {source!r}, which is neither a local folder nor a hub model that can be reached and "
            "loaded from safetensors; check the spelling and the network, or name a local folder"
        )
    return ModelLoadError(
        f"got the {what} {source!r} that cannot be loaded ({_first_sentence(error)}); "
        "name another model or a local folder"
    )


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sentence = lines[0].split(". ")[0][:200].rstrip(".:") if lines else ""
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def _out_of_memory(what: str, source: Path | str) -> CapacityError:
    return CapacityError(
        f"no memory to load the {what} {str(source)!r}; name a smaller model, lower --dtype to bfloat16, "
        "or spread it with --device-map auto"
    )
