"""Where weights live and how wide they are."""

import torch

from mtad.errors import ConfigError, ModelLoadError

NATIVE_BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def choose_device(name: str) -> torch.device:
    """The device a name stands for; `auto` is the first CUDA device, else the CPU.

    Raises:
        ConfigError: The name is no device.
        ModelLoadError: The device is not there.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    index, count = device.index or 0, torch.cuda.device_count()
    if not torch.cuda.is_available() or index >= count:
        raise ModelLoadError(
            f"got device {name}, but {count or 'no'} CUDA device{'s are' if count > 1 else ' is'} there; "
            "use --device auto or --device cpu"
        )
    return torch.device("cuda", index)


def choose_dtype(name: str, checkpoint_dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype a name stands for.

    Args:
        name: `auto` or the name of a floating dtype.
        checkpoint_dtype: What the checkpoint was saved in, where it says so.
        device: Where the weights will live.

    Returns:
        For `auto`, the checkpoint's own dtype on CUDA; on the CPU bfloat16 where the checkpoint is bfloat16 and the
        CPU multiplies it natively, else float32.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return checkpoint_dtype or torch.bfloat16
    is_bfloat16 = checkpoint_dtype is torch.bfloat16 and has_native_bfloat16()
    return torch.bfloat16 if is_bfloat16 else torch.float32


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware; elsewhere they are far slower than float32."""
    read_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if read_capabilities is None:  # torch before 2.11 has only the private checks
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
    capabilities = read_capabilities()
    return any(capabilities.get(name, False) for name in NATIVE_BFLOAT16_CAPABILITIES)


def check_device_map(name: str | None) -> None:
    """Raise unless `name` is a way accelerate knows to spread weights, or a single device.

    Raises:
        ConfigError: It is neither.
    """
    if name is None or name in DEVICE_MAPS:
        return
    try:
        torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device_map must be one of {', '.join(DEVICE_MAPS)} or a device, got {name!r}") from None


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
