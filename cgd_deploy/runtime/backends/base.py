"""The seam between the runtime and the libraries that run models."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..cuda.streams import Streams

IMAGES, DESCRIPTORS = "images", "descriptors"
"""Names of the input and the output of every model and engine."""

Self = TypeVar("Self", bound="Backend")


class Backend(Protocol):
    """A model. Images are the caller's and only read; the result is the caller's too.

    concurrency   calls of ``run`` at the same time that keep it busy
    streams       the CUDA lanes it runs on, None on the CPU
    """

    concurrency: int = 1
    streams: Streams | None = None

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB [N, H, W, 3], C-contiguous -> unit descriptors float32 [N, D]; several threads may call it."""
        ...

    def run_into(self, images: NDArray[np.uint8], descriptors: NDArray[np.float32]) -> None:
        """The same into C-contiguous float32 [N, D] of the caller's."""
        descriptors[...] = self.run(images)

    def close(self) -> None:
        """Free the model; running it afterwards is a bug of the caller's."""
        ...

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
