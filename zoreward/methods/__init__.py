"""Methods: which members to ask for, and what to make of their scores. Scalars only; no model is known here."""

from zoreward.methods.directions import Directions
from zoreward.methods.estimators import SPSA, Population
from zoreward.methods.names import METHODS, make_method, named
from zoreward.methods.steps import Method, SPSAState, all_scored, state_after
from zoreward.methods.svrg import SVRG, SVRGState

__all__ = [
    "METHODS",
    "SPSA",
    "SVRG",
    "Directions",
    "Method",
    "Population",
    "SPSAState",
    "SVRGState",
    "all_scored",
    "make_method",
    "named",
    "state_after",
]
