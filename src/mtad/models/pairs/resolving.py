"""Turning the name of a pair, or of one model, into something that can be loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtad.errors import ModelLoadError
from mtad.models.pairs.folders import PairFolders, cache_root, is_complete
from mtad.models.pairs.sources import KNOWN_PAIRS, PairSource

Role = Literal["target", "draft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPaths:
    """Two Hugging Face model folders that share one tokenizer."""

    target: Path
    draft: Path


def pair_paths(name: str = "smollm2", *, progress: bool = True) -> PairPaths:
    """Returns the folders of a known pair, which is downloaded and converted on first use.

    The cache is the folder named by the environment variable `MTAD_CACHE`, else the user's cache folder.
    Nothing is ever written to standard output.

    Args:
        name: A key of `KNOWN_PAIRS`.
        progress: Whether to report the download and the conversion on standard error.

    Raises:
        ModelLoadError: No pair has this name.
        PairDownloadError: The pair cannot be fetched, checked or written to the cache.
    """
    return ensure_pair(_known_source(name), cache_root(), progress=progress)


def pair_gguf(name: str, *, progress: bool = True) -> Path:
    """Returns the GGUF file that a known pair's target was made from, which is downloaded on first use.

    Raises:
        ModelLoadError: No pair has this name.
        PairDownloadError: The file cannot be fetched, checked or written to the cache.
    """
    folders = PairFolders.locate(_known_source(name), cache_root())
    if not folders.gguf.is_file():
        from mtad.models.pairs.building import fetch_gguf

        fetch_gguf(_known_source(name), folders, progress=progress)
    return folders.gguf


def _known_source(name: str) -> PairSource:
    source = KNOWN_PAIRS.get(name)
    if source is None:
        raise ModelLoadError(f"got the pair {name!r}, expected one of: {', '.join(sorted(KNOWN_PAIRS))}")
    return source


def ensure_pair(source: PairSource, root: Path, *, progress: bool = True) -> PairPaths:
    """Returns the folders of `source` under the cache folder `root`, which are built where they are missing or damaged.

    Raises:
        PairDownloadError: The pair cannot be fetched, checked or written to the cache.
    """
    folders = PairFolders.locate(source, root)
    if not (is_complete(folders.target) and is_complete(folders.draft)):
        from mtad.models.pairs.building import build_pair

        build_pair(source, folders, progress=progress)
    return PairPaths(target=folders.target, draft=folders.draft)


def resolve_model(name_or_path: str, role: Role, *, progress: bool = True) -> Path | str:
    """Returns what the model loader needs for `name_or_path`.

    The name of a known pair becomes the folder of its target or draft, an existing folder becomes its path, and
    anything else stays as it is: the identifier of a model on the Hugging Face hub.

    Raises:
        ModelLoadError: `name_or_path` is a path, and no folder is there.
        PairDownloadError: The pair cannot be fetched, checked or written to the cache.
    """
    if name_or_path in KNOWN_PAIRS:
        paths = pair_paths(name_or_path, progress=progress)
        return paths.target if role == "target" else paths.draft
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise ModelLoadError(
            f"got {name_or_path!r} as the {role} model, but there is no such folder; expected a folder with a "
            f"config.json, the identifier of a hub model, or one of: {', '.join(sorted(KNOWN_PAIRS))}"
        )
    return name_or_path
