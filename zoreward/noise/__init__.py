"""Noise: families of directions, and the numbers that they are made of. Imported without NumPy, for the help."""

from zoreward.noise.dense import DENSE, Dense
from zoreward.noise.factors import Factored, LowRank
from zoreward.noise.families import FAMILIES, NOISES, family_from_json, family_of, family_options, has_rank
from zoreward.noise.family import DISTRIBUTIONS, Distribution, Family
from zoreward.noise.seeds import NOISE_VERSION, canonical_name, derive_seed, stream_of, streams
from zoreward.noise.subspace import Subspace

__all__ = [
    "DENSE",
    "DISTRIBUTIONS",
    "FAMILIES",
    "NOISES",
    "NOISE_VERSION",
    "Dense",
    "Distribution",
    "Factored",
    "Family",
    "LowRank",
    "Subspace",
    "canonical_name",
    "derive_seed",
    "family_from_json",
    "family_of",
    "family_options",
    "has_rank",
    "stream_of",
    "streams",
]
