"""CUDA streams and arrays of other libraries (pycuda, CuPy, torch) as integers, without importing any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputError


def stream_handle(stream: Any) -> int:
    """The cudaStream_t of an integer, a pycuda ``Stream``, or a torch, CuPy or cuda.core stream.

    A pycuda program must use the primary context (``import pycuda.autoprimaryctx``), which CUDA's runtime shares.
    """
    for name in ("handle", "cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    try:
        return int(stream)
    except (TypeError, ValueError) as error:
        kind = type(stream).__name__
        raise InputError(f"{kind} is no CUDA stream; pass a pycuda, torch or CuPy stream or its handle.") from error


def device_pointer(array: Any, shape: Sequence[int], dtype: type[np.generic]) -> int:
    """The address of a C-contiguous device array of exactly this shape and dtype.

    array   anything with ``__cuda_array_interface__`` (pycuda ``GPUArray``, CuPy, torch); a bare address, as an
            integer or a pycuda ``DeviceAllocation``, is believed
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        try:
            return int(array)
        except (TypeError, ValueError) as error:
            kind = type(array).__name__
            raise InputError(f"{kind} is not on a CUDA device; pass a device array or its address.") from error
    expected = np.dtype(dtype)
    found = np.dtype(interface["typestr"])
    if tuple(interface["shape"]) != tuple(shape) or found != expected:
        raise InputError(f"the device array is {found} {list(interface['shape'])}; expected {expected} {list(shape)}.")
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != np.empty(shape, expected).strides:
        raise InputError("the device array is not C-contiguous; make a contiguous copy of it first.")
    return int(interface["data"][0])
