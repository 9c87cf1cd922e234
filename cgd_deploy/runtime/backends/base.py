"""The interface between the runtime and the libraries that run models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..cuda.streams import Streams

IMAGES, DESCRIPTORS = "images", "descriptors"
"""Names of the input and the output of every model and engine."""

Self = TypeVar("Self", bound="Backend")


class Backend(ABC):
    """A model on a library. A context manager, else call ``close``.

    The caller owns the images, which are only read, and the descriptors.

    concurrency   calls of ``run`` at the same time that keep the backend busy
    streams       the CUDA lanes that the backend runs on, None on the CPU
    """

    concurrency: int = 1
    streams: Streams | None = None

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB [N, H, W, 3], C-contiguous -> unit descriptors float32 [N, D]; several threads may call it."""

    def run_into(self, images: NDArray[np.uint8], descriptors: NDArray[np.float32]) -> None:
        """``run``, but write the descriptors into the caller's C-contiguous float32 [N, D]."""
        descriptors[...] = self.run(images)

    @abstractmethod
    def close(self) -> None:
        """Free the model. The caller must not run the backend afterwards."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
