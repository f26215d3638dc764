"""Methods: which members to ask for, and what to make of their scores. Scalars only; no model is known here."""

from zoreward.methods.population import Population
from zoreward.methods.spsa import SPSA
from zoreward.methods.steps import SPSAState

__all__ = ["SPSA", "Population", "SPSAState"]
