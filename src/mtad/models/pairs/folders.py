"""Where the pairs are cached, and whether what is there is whole."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mtad.errors import PairDownloadError
from mtad.models.pairs.sources import PairSource

CACHE_VARIABLE = "MTAD_CACHE"
MARKER_NAME = "complete.json"
MANIFEST_NAME = "manifest.json"
_RECIPE = 1
"""Raised when the conversion changes, so that folders made by an older one are rebuilt."""
_HASHED_BYTES = 64 * 1024
"""Files up to this size are compared by content on reuse, larger ones by size alone."""


def cache_root() -> Path:
    """Returns the folder named by `MTAD_CACHE`, or the user's cache folder for mtad."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("mtad", appauthor=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFolders:
    """Every place that a pair occupies in the cache."""

    home: Path
    target: Path
    draft: Path
    scratch: Path
    """Holds whatever is being built; only the owner of `lock` touches it."""
    lock: Path
    downloads: Path
    gguf: Path
    """The target as it was published; only there once it was asked for."""

    @classmethod
    def locate(cls, source: PairSource, root: Path) -> "PairFolders":
        """Names the folders of `source` under `root`, without touching `root`.

        Folder names carry the content they are made from, so versions of mtad with different drafts share a cache.

        Raises:
            PairDownloadError: The packed draft that mtad ships is missing.
        """
        home = root / "pairs" / source.name
        return cls(
            home=home,
            target=home / f"target-{source.target.member_sha256[:8]}",
            draft=home / f"draft-{_packed_sha256(source.draft_folder)[:8]}",
            scratch=home / "building",
            lock=home / "lock",
            downloads=root / "downloads",
            gguf=home / f"target-{source.target.member_sha256[:8]}.gguf",
        )


def _packed_sha256(draft_folder: Path) -> str:
    try:
        manifest = json.loads((draft_folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return str(manifest["packed_sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise PairDownloadError(
            f"got no usable {MANIFEST_NAME} in {draft_folder}, expected the packed draft that mtad ships; "
            "reinstall mtad"
        ) from error


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark_complete(folder: Path) -> None:
    """Writes down size and SHA-256 of every file in `folder`, as the last step of building it."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != MARKER_NAME
    }
    marker = {"recipe": _RECIPE, "files": files}
    (folder / MARKER_NAME).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Whether `folder` was built to the end by this recipe and no file has since gone, changed size or been emptied."""
    try:
        marker = json.loads((folder / MARKER_NAME).read_text(encoding="utf-8"))
        return marker["recipe"] == _RECIPE and all(
            _is_unchanged(folder / name, facts["bytes"], facts["sha256"]) for name, facts in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_unchanged(path: Path, num_bytes: int, sha256: str) -> bool:
    if path.stat().st_size != num_bytes:
        return False
    return num_bytes > _HASHED_BYTES or file_sha256(path) == sha256
