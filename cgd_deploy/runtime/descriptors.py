"""Descriptors as arrays, and how similar two of them are."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Descriptor: TypeAlias = NDArray[np.float32]
"""The unit descriptor of one picture, float32 [dim]."""
Descriptors: TypeAlias = NDArray[np.float32]
"""Unit descriptors of several pictures, float32 [N, dim]."""


def cosines(descriptors: Descriptors, reference: Descriptors) -> Descriptors:
    """Row by row cosine similarity of two float32 [N, D] sets of unit descriptors: float32 [N]."""
    return np.einsum("nd,nd->n", descriptors, reference)
