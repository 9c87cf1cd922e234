"""Memory and CUDA streams of other libraries (pycuda, CuPy, torch, ...) as they are, without importing any of them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def on_device(array: Any) -> bool:
    """Whether it is an array in CUDA memory."""
    return hasattr(array, "__cuda_array_interface__")


def array_length(array: Any) -> int:
    """The rows of an array that knows its shape, on the device or not."""
    shape = array.__cuda_array_interface__["shape"] if on_device(array) else getattr(array, "shape", ())
    if not shape:
        raise InputError(f"{type(array).__name__} has no shape; pass rows, the number of pictures, with it.")
    return int(shape[0])


def host_array(array: Any, shape: tuple[int, ...], dtype: type[np.generic], *, writable: bool = False) -> NDArray[Any]:
    """A NumPy view, never a copy, of exactly this shape and dtype.

    array   a NumPy array, anything with DLPack (a torch tensor) or a buffer (bytes, ctypes, cffi), or an address as an
            integer, which is believed

    Raises InputError for another shape, dtype, layout or place, or if it is to be writable and is not.
    """
    view = _view(array, shape, dtype)
    expected = np.dtype(dtype)
    if view.shape != shape or view.dtype != expected:
        raise InputError(f"the array is {view.dtype} {list(view.shape)}; expected {expected} {list(shape)}.")
    if not view.flags.c_contiguous:
        raise InputError("the array is not C-contiguous; make a contiguous copy of it first.")
    if writable and not view.flags.writeable:
        raise InputError("the array for the descriptors is read-only; pass one that may be written.")
    return view


def _view(array: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, int):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        array = (ctypes.c_char * size).from_address(array)
    try:
        if hasattr(array, "__dlpack__"):
            return np.from_dlpack(array)
        return np.frombuffer(array, dtype).reshape(shape)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = type(array).__name__
        raise InputError(
            f"{kind} is no array of {list(shape)} in host memory ({error}); pass a NumPy array."
        ) from error
