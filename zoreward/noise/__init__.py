"""Noise: families of directions, and the numbers that they are made of. Imported without NumPy, for the help."""

from zoreward.noise.dense import DENSE, Dense
from zoreward.noise.factors import LowRank
from zoreward.noise.families import FAMILIES, family_of
from zoreward.noise.family import Family
from zoreward.noise.seeds import (
    DISTRIBUTIONS,
    NOISE_VERSION,
    Distribution,
    Purpose,
    SeedIndex,
    canonical_name,
    derive_seed,
    stream_of,
    streams,
)
from zoreward.noise.subspace import Subspace

__all__ = ["DENSE", "DISTRIBUTIONS", "FAMILIES", "NOISE_VERSION", "Dense", "Distribution", "Family", "LowRank"]
__all__ += ["Purpose", "SeedIndex", "Subspace", "canonical_name", "derive_seed", "family_of", "stream_of", "streams"]
