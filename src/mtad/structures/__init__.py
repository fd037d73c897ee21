"""The nouns that travel between rooms: tensors with a leading batch dimension, and plain results."""

from mtad.structures.acceptance import Acceptance
from mtad.structures.constraints import Grammar, GrammarCursor, LogitsProcessor, RowConstraints
from mtad.structures.results import DecodingStats, GenerationResult, Piece, StepExplanation, TopLogProbs
from mtad.structures.rows import RowControls, RowSettings
from mtad.structures.steps import StepObserver, StepRecord
from mtad.structures.tree import MAX_TREE_NODES, TokenTree, ancestor_bitmask, ancestor_matrix, node_bits, path_to

__all__ = [
    "MAX_TREE_NODES",
    "Acceptance",
    "DecodingStats",
    "GenerationResult",
    "Grammar",
    "GrammarCursor",
    "LogitsProcessor",
    "Piece",
    "RowConstraints",
    "RowControls",
    "RowSettings",
    "StepExplanation",
    "StepObserver",
    "StepRecord",
    "TokenTree",
    "TopLogProbs",
    "ancestor_bitmask",
    "ancestor_matrix",
    "node_bits",
    "path_to",
]
