"""Every error that mtad raises on purpose.

Each message says in one sentence what was got, what was expected and what to do next.
"""


class MtadError(Exception):
    """Base class of all errors that mtad raises on purpose."""


class ConfigError(MtadError):
    """A setting is out of its bounds, unknown, or does not fit another setting."""


class PromptError(MtadError):
    """A prompt, or a file of prompts, cannot be used."""


class ModelLoadError(MtadError):
    """A model, adapter or tokenizer cannot be loaded."""


class UnsupportedModelError(ModelLoadError):
    """The architecture cannot be served with tree attention over a static cache."""


class VocabularyMismatchError(ModelLoadError):
    """Target and draft do not share one vocabulary."""


class PairDownloadError(ModelLoadError):
    """The default pair cannot be fetched, checked or written to the cache."""


class CapacityError(MtadError):
    """A prompt, a tree or a batch does not fit the cache, the model or the memory."""


class UnsupportedOperationError(MtadError):
    """Something that works elsewhere cannot be had in this way of decoding."""


class SearchBudgetError(MtadError):
    """An exact search expanded its whole budget without reaching the optimum."""


class TraceError(MtadError):
    """A trace cannot be written or read."""


class DataError(MtadError):
    """A data set, or a record of what was done with it, cannot be used."""


class JudgeError(MtadError):
    """A judge's endpoint cannot be reached or answers nonsense."""


class DistillError(MtadError):
    """A draft cannot be trained, or a run cannot be gone on with."""


class EnergyError(MtadError):
    """An energy counter cannot be opened or read."""


def spell_bytes(count: int) -> str:
    """A number of bytes as people read it, such as 1.2 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
