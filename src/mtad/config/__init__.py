"""Frozen settings, their bounds and help texts, and how files and flags are merged into them."""

from mtad.config.distillation import SIZE_NAMES, DistillOptions
from mtad.config.evaluation import EvaluationOptions
from mtad.config.fields import Setting, replace_settings, setting_fields
from mtad.config.files import read_config_file
from mtad.config.options import (
    DRAFTER_NAMES,
    METHOD_NAMES,
    RULE_OPTIONS,
    VERIFIER_NAMES,
    GenerationOptions,
    ModelOptions,
)
from mtad.config.server import ServerOptions
from mtad.config.session import SessionOptions

__all__ = [
    "DRAFTER_NAMES",
    "METHOD_NAMES",
    "RULE_OPTIONS",
    "SIZE_NAMES",
    "VERIFIER_NAMES",
    "DistillOptions",
    "EvaluationOptions",
    "GenerationOptions",
    "ModelOptions",
    "ServerOptions",
    "SessionOptions",
    "Setting",
    "read_config_file",
    "replace_settings",
    "setting_fields",
]
