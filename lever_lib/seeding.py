"""Independent random streams, derived by name from one root seed.

A stream depends on the root seed and on its name alone: a new consumer shifts nobody, and the order in which
jobs run does not matter.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(root_seed: int, *name: str | int) -> np.random.Generator:
    """The generator called `name` under `root_seed`.

    Args:
        root_seed: non-negative; `root_seed` of the params file.
        *name: what the stream is for, from general to particular: `"training", "X1", 3, "path"`.
    """
    if not name:
        raise ValueError("name: a stream needs at least one part")
    digest = hashlib.sha256("\x1f".join(str(part) for part in name).encode()).digest()
    words = np.frombuffer(digest, dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence([root_seed, *words.tolist()]))
