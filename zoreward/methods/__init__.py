"""Methods: which members to ask for, and what to make of their scores. Scalars only; no model is known here."""

from zoreward.methods.spsa import SPSA, SPSAState

__all__ = ["SPSA", "SPSAState"]
