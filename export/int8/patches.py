"""Statistics of the patches that a convolution multiplies by its kernel. Knows no model and no codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEP = 2
"""Every second row and column of the output is measured: neighbouring patches are almost equal."""


@dataclass(frozen=True)
class Window:
    """What a convolution reads of ``tensor`` [N, C, H, W].

    kernel    height and width
    strides   rows and columns between two patches
    pads      rows and columns of zeros: top, left, bottom, right
    """

    tensor: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]


class Patches:
    """Moments of all patches added, each a vector of K = C x kernel values in the order of the weights."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._count = 0
        self._sum: NDArray[np.float64] = np.zeros(1)
        self._products: NDArray[np.float64] = np.zeros((1, 1))

    def add(self, value: NDArray[np.float32]) -> None:
        """Add every patch of ``value`` [N, C, H, W] that STEP does not leave out."""
        top, left, bottom, right = self.window.pads
        padded = np.pad(value, ((0, 0), (0, 0), (top, bottom), (left, right)))
        every = np.lib.stride_tricks.sliding_window_view(padded, self.window.kernel, axis=(2, 3))
        rows, columns = (STEP * stride for stride in self.window.strides)
        chosen = every[:, :, ::rows, ::columns].transpose(0, 2, 3, 1, 4, 5)
        patches = chosen.reshape(-1, value.shape[1] * int(np.prod(self.window.kernel)))
        self._count += len(patches)
        self._sum = self._sum + patches.sum(axis=0, dtype=np.float64)
        self._products = self._products + patches.T @ patches

    @property
    def second_moment(self) -> NDArray[np.float64]:
        """E[x x^T], [K, K]."""
        return self._products / self._count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """E[x x^T] - E[x] E[x]^T, [K, K]."""
        mean = self._sum / self._count
        return self.second_moment - np.outer(mean, mean)
