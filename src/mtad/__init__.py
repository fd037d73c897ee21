"""mtad: multi-token joint decoding for large language models.

The names below load torch and transformers only when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtad.api.engine import Engine
    from mtad.api.prompts import PromptFormat
    from mtad.api.session import BatchSession
    from mtad.api.transformers_generate import custom_generate
    from mtad.config import GenerationOptions, ModelOptions
    from mtad.errors import MtadError
    from mtad.structures.results import DecodingStats, GenerationResult, Piece

__version__ = "0.1.0"

_HOMES = {
    "BatchSession": "mtad.api.session",
    "DecodingStats": "mtad.structures.results",
    "Engine": "mtad.api.engine",
    "GenerationOptions": "mtad.config",
    "GenerationResult": "mtad.structures.results",
    "ModelOptions": "mtad.config",
    "MtadError": "mtad.errors",
    "Piece": "mtad.structures.results",
    "PromptFormat": "mtad.api.prompts",
    "custom_generate": "mtad.api.transformers_generate",
}

__all__ = [
    "BatchSession",
    "DecodingStats",
    "Engine",
    "GenerationOptions",
    "GenerationResult",
    "ModelOptions",
    "MtadError",
    "Piece",
    "PromptFormat",
    "__version__",
    "custom_generate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mtad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
