"""What the text so far says about the next token: penalties, biases, processors and grammars, at every tree node."""

from mtad.constraints.base import Constraint, Constraints
from mtad.constraints.guidance import GrammarKind, GrammarLibrary, check_grammar
from mtad.constraints.places import Places
from mtad.constraints.runner import ConstrainedRunner

__all__ = ["ConstrainedRunner", "Constraint", "Constraints", "GrammarKind", "GrammarLibrary", "Places", "check_grammar"]
