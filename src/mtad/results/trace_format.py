"""The file format of traces: Arrow's IPC stream with one row per step of an answer and the run's facts in front."""

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtad.errors import TraceError

FORMAT_VERSION = 1
METADATA_KEY = b"mtad_trace"
END_MARKER = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""How every whole Arrow stream ends."""

Array = NDArray[Any]
Column = tuple[Array, ...]
"""Flat values, then the lengths of each level of lists around them, the innermost level first."""
Columns = dict[str, Column]


@dataclass(frozen=True, slots=True)
class ColumnLayout:
    """What a column holds: the type of its values (`float`: as wide as the run's own), and levels of lists."""

    kind: str
    num_levels: int = 0


LAYOUT: dict[str, ColumnLayout] = {
    "row": ColumnLayout("int32"),
    "step": ColumnLayout("int32"),
    "position": ColumnLayout("int32"),
    "room": ColumnLayout("int32"),
    "seed": ColumnLayout("int64"),
    "is_greedy": ColumnLayout("bool"),
    "log_threshold": ColumnLayout("float32"),
    "is_strict": ColumnLayout("bool"),
    "pending_token": ColumnLayout("int32"),
    "tokens": ColumnLayout("int32", 1),
    "parents": ColumnLayout("int8", 1),
    "depths": ColumnLayout("int8", 1),
    "valid": ColumnLayout("bool", 1),
    "carried": ColumnLayout("bool", 1),
    "opens_span": ColumnLayout("bool", 1),
    "joint_draft_log_probs": ColumnLayout("float", 1),
    "winner": ColumnLayout("int8"),
    "max_depth": ColumnLayout("int8"),
    "branching": ColumnLayout("int8", 1),
    "has_replacement": ColumnLayout("bool"),
    "target_tokens": ColumnLayout("int32", 2),
    "target_log_probs": ColumnLayout("float", 2),
    "unwarped_log_probs": ColumnLayout("float32", 2),
    "draft_tokens": ColumnLayout("int32", 2),
    "draft_log_probs": ColumnLayout("float", 2),
    "path": ColumnLayout("int8", 1),
    "next_token": ColumnLayout("int32"),
    "joint_log_ratio": ColumnLayout("float32"),
    "emitted_log_probs": ColumnLayout("float32", 1),
}
"""The columns in the order of the file; docs/traces.md says what they mean."""


def _own_version() -> str:
    try:
        return version("mtad")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """What holds for every step of a trace.

    Attributes:
        version: Version of the format.
        mtad: Version of mtad that wrote the trace.
        method: Decoding method.
        drafter: Name of the drafter.
        verifier: Name of the rule whose decisions are recorded.
        is_lossless: Whether that rule is lossless, which also decides what temperature 0 means.
        num_prompts: Prompts of the run.
        vocab_size: Tokens of the target's vocabulary.
        eos_token_ids: Tokens that end an answer.
        config: Every resolved setting of the run, and the models'.
    """

    version: int = FORMAT_VERSION
    mtad: str = field(default_factory=_own_version)
    method: str
    drafter: str
    verifier: str
    is_lossless: bool
    num_prompts: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    config: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The facts as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "TraceFacts":
        """Read facts of this version.

        Raises:
            TraceError: Another version of the format, or no facts of a trace at all.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise TraceError("the facts in front of it are no JSON") from error
        if not isinstance(values, dict) or "version" not in values:
            raise TraceError("the facts in front of it have no version")
        if values["version"] != FORMAT_VERSION:
            raise TraceError(
                f"it has format version {values['version']} (mtad {values.get('mtad', 'unknown')}), and this mtad "
                f"reads version {FORMAT_VERSION}"
            )
        if set(values) != {item.name for item in fields(cls)}:
            raise TraceError("the facts in front of it are not those of a trace")
        return cls(**(values | {"eos_token_ids": tuple(values["eos_token_ids"])}))


def require_arrow() -> Any:
    """The `pyarrow` module.

    Raises:
        TraceError: It is not installed.
    """
    try:
        import pyarrow as arrow
        import pyarrow.ipc
    except ImportError as error:
        raise TraceError("traces need pyarrow, which is not installed; run: pip install 'mtad[traces]'") from error
    return arrow


def check_trace_path(path: Path) -> None:
    """Refuse, before any model is loaded, a place where no trace can be written.

    Raises:
        TraceError: The folder is missing, the path is a folder, or pyarrow is not installed.
    """
    require_arrow()
    if path.is_dir() or not path.absolute().parent.is_dir():
        reason = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise TraceError(f"trace {path} {reason}; name a file in an existing folder")


def numpy_kind(values: Array, layout: ColumnLayout) -> np.dtype[Any]:
    """The type in which the values of a column are stored; `float` keeps float64 and makes all else float32."""
    if layout.kind != "float":
        return np.dtype(layout.kind)
    return np.dtype(np.float64 if values.dtype == np.float64 else np.float32)
