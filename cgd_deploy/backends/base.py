"""The seam between the runtime and the libraries that run models."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Self = TypeVar("Self", bound="Backend")


class Backend(Protocol):
    """A model. Images are the caller's and only read; the result is the caller's too."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB [N, H, W, 3], C-contiguous -> unit descriptors float32 [N, D]; several threads may call it."""
        ...

    def close(self) -> None:
        """Free the model; running it afterwards is a bug of the caller's."""
        ...

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
