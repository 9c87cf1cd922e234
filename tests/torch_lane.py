"""Work for a lane out of torch alone, so that the stream runtime can be proven on any CUDA machine with torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgd_deploy.runtime.cuda.lane import Layout

LAYOUT = Layout(buckets=(1, 2, 4, 8), image_shape=(32, 32, 3), dim=64)
LONG = 200_000_000
"""Clock cycles, about a tenth of a second of a GPU."""


class TorchLane:
    """An ``Enqueue``: each descriptor is the first 64 pixel values of its picture, halved.

    cycles   how long the GPU spins before each batch

    It allocates nothing, so it can be captured in a graph, and a mistaken order or address shows in the numbers.
    """

    capturable = True

    def __init__(self, torch: Any, cycles: int = 0) -> None:
        self._torch, self._cycles = torch, cycles
        self._half = torch.full((1,), 0.5, device="cuda")
        self._views: dict[tuple[int, int], Any] = {}

    def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        torch = self._torch
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            if self._cycles:
                torch.cuda._sleep(self._cycles)
            pixels = self._at(images, (batch, int(np.prod(LAYOUT.image_shape))), "|u1")
            torch.mul(pixels[:, : LAYOUT.dim], self._half, out=self._at(descriptors, (batch, LAYOUT.dim), "<f4"))
        return True

    def _at(self, pointer: int, shape: tuple[int, int], kind: str) -> Any:
        """A tensor over device memory that is not torch's; made once, as a capture can make none."""
        if (view := self._views.get((pointer, shape[0]))) is not None:
            return view
        interface = {"data": (pointer, False), "shape": shape, "typestr": kind, "version": 3, "stream": None}
        view = self._torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
        self._views[pointer, shape[0]] = view
        return view

    def close(self) -> None:
        self._half = None
        self._views.clear()


def expected(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What ``TorchLane`` makes of pictures."""
    return images.reshape(len(images), -1)[:, : LAYOUT.dim].astype(np.float32) / 2
