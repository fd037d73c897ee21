"""Text or token ids in, results or a stream out."""

from mtad.api.engine import Engine
from mtad.api.prompts import Prompt, PromptFormat

__all__ = ["Engine", "Prompt", "PromptFormat"]
