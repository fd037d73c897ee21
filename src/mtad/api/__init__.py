"""Text or token ids in, results or a stream out."""

from mtad.api.engine import Engine
from mtad.api.prompts import Prompt, PromptFormat
from mtad.api.session import BatchSession

__all__ = ["BatchSession", "Engine", "Prompt", "PromptFormat"]
