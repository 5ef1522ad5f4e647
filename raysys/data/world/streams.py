"""Random streams keyed by what they are for, so that no worker count or order can matter."""

import hashlib

import numpy as np

from raysys.data.manifest import canonical_json


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A counter-based generator for (seed, purpose, index), independent of all others."""
    digest = hashlib.sha256(canonical_json([seed, purpose, *index]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
