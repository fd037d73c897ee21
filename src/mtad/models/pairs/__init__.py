"""The default model pair: fetched once, converted once, then found in the cache.

Importing this package loads neither torch nor transformers, and finding a cached pair does not either.
"""

from mtad.models.pairs.resolving import PairPaths, Role, pair_gguf, pair_paths, resolve_model
from mtad.models.pairs.sources import KNOWN_PAIRS, PairSource

__all__ = ["KNOWN_PAIRS", "PairPaths", "PairSource", "Role", "pair_gguf", "pair_paths", "resolve_model"]
