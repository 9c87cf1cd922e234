"""Uses memory and CUDA streams of other libraries (pycuda, CuPy, torch, ...) in place, without importing a library.

Work is ordered with the streams of these libraries as the CUDA array interface, version 3, and DLPack say.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import dlpack
from .cuda.driver import ORDINAL
from .dlpack import Exported

LEGACY_DEFAULT_STREAM = 1
"""CUDA's handle of the legacy default stream, also in the array interface and DLPack; 2 is the per-thread default."""


def stream_handle(stream: Any) -> int:
    """The cudaStream_t of an integer, a pycuda ``Stream``, or a torch, CuPy or cuda.core stream; 0 becomes 1.

    A pycuda program must use the primary context (``import pycuda.autoprimaryctx``), which CUDA's runtime shares.
    """
    try:
        if hasattr(stream, "__cuda_stream__"):
            _, handle = stream.__cuda_stream__()
        else:
            named = (getattr(stream, name) for name in ("handle", "cuda_stream", "ptr") if hasattr(stream, name))
            handle = next(named, stream)
        number = int(handle)
    except (TypeError, ValueError) as error:
        kind = type(stream).__name__
        raise InputError(f"{kind} is not a CUDA stream; pass a pycuda, torch or CuPy stream or its handle.") from error
    if number < 0:
        raise InputError(f"{number} is not a CUDA stream; pass a pycuda, torch or CuPy stream or its handle.")
    return number or LEGACY_DEFAULT_STREAM


class DeviceArray:
    """An array of another library in CUDA memory, or its address.

    stream   handle of the stream that the array interface names for work on the array, or None

    Raises InputError for an array that is not on a CUDA device or breaks the protocol.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._interface = _interface(array)
        self.stream = None if self._interface is None else _named_stream(self._interface, type(array).__name__)

    def pointer(self, shape: Sequence[int], dtype: type[np.generic], stream: int, *, writable: bool = False) -> int:
        """The address of a C-contiguous array of exactly this shape and dtype. A bare address is not checked.

        stream   handle of a stream; by DLPack, a library that names no stream makes it wait for the library's own work
        """
        exported = self._exported(stream)
        if exported is None:
            return _address(self._array)
        expected = np.dtype(dtype)
        if exported.shape != tuple(shape) or exported.dtype != expected.name:
            raise InputError(
                f"the device array is {exported.dtype} {list(exported.shape)}; expected {expected} {list(shape)}."
            )
        if exported.strides is not None and not _is_contiguous(shape, exported.strides, expected.itemsize):
            raise InputError("the device array is not C-contiguous; make a contiguous copy of it first.")
        if writable and exported.read_only:
            raise InputError("the device array for the descriptors is read-only; pass one that may be written.")
        return exported.pointer

    def _exported(self, stream: int) -> Exported | None:
        """The array as its library describes it, None for a bare address."""
        kind = type(self._array).__name__
        names_stream = self._interface is not None and "stream" in self._interface
        if not names_stream and (place := _cuda_by_dlpack(self._array)):
            if place[0] == dlpack.CUDA:
                check_place(place[1])
            capsule = _capsule(self._array, stream)  # orders the streams, so the interface's address is not enough
            if self._interface is None:
                return _read_capsule(capsule, kind)
        return None if self._interface is None else _read_interface(self._interface, kind)


def streams_of(stream: Any, *arrays: DeviceArray) -> list[int]:
    """Handles of the caller's stream and of the streams that the arrays name, each once; else the legacy default."""
    named = [] if stream is None else [stream_handle(stream)]
    named += [array.stream for array in arrays if array.stream is not None]
    return list(dict.fromkeys(named)) or [LEGACY_DEFAULT_STREAM]


def check_place(ordinal: int | None) -> None:
    """Raise InputError unless ``ordinal`` is the device that engines run on; None stands for memory of the host."""
    if ordinal is None:
        raise InputError("the address is not in CUDA memory; pass a device array, or leave stream out for host memory.")
    if ordinal != ORDINAL:
        raise InputError(
            f"the memory is on CUDA device {ordinal}, and the engine on device {ORDINAL}; copy it there, or set "
            f"CUDA_VISIBLE_DEVICES so that the process sees only that GPU."
        )


def _interface(array: Any) -> Any:
    """The array's ``__cuda_array_interface__``, or None."""
    try:
        return getattr(array, "__cuda_array_interface__", None)
    except RuntimeError as error:  # torch, for a tensor that requires a gradient
        kind = type(array).__name__
        raise InputError(f"{kind} gives no access to its memory ({_first_line(error)}); detach it first.") from error


def _named_stream(interface: Any, kind: str) -> int | None:
    try:
        stream = interface.get("stream")
        number = None if stream is None else int(stream)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{kind} breaks the CUDA array interface ({error}); pass another array.") from error
    if number is not None and number <= 0:
        raise InputError(
            f"{kind} names stream {number}, which the CUDA array interface forbids; expected None, 1 for the legacy "
            "default stream, 2 for the default stream of the thread, or a handle."
        )
    return number


def _read_interface(interface: Any, kind: str) -> Exported:
    try:
        pointer, read_only = interface["data"]
        strides = interface.get("strides")
        exported = Exported(
            pointer=int(pointer),
            shape=tuple(map(int, interface["shape"])),
            dtype=str(np.dtype(interface["typestr"])),
            strides=None if strides is None else tuple(map(int, strides)),
            read_only=bool(read_only),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{kind} breaks the CUDA array interface ({error!r}); pass another array.") from error
    if interface.get("mask") is not None:
        raise InputError(f"{kind} has a mask, which engines ignore; pass an array without a mask.")
    return exported


def _cuda_by_dlpack(array: Any) -> tuple[int, int] | None:
    """Kind of memory and ordinal of the device of an array that offers CUDA memory by DLPack, else None."""
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        return None
    try:
        kind, ordinal = map(int, array.__dlpack_device__())
    except Exception:  # each library has its own error for devices that DLPack lacks
        return None
    return (kind, ordinal) if kind in (dlpack.CUDA, dlpack.CUDA_MANAGED) else None


def _capsule(array: Any, stream: int) -> Any:
    try:
        return dlpack.export(array, stream)
    except Exception as error:  # each library has its own error
        raise InputError(
            f"{type(array).__name__} cannot be used in order with stream {stream} ({_first_line(error)}); pass another "
            "stream or array."
        ) from error


def _read_capsule(capsule: Any, kind: str) -> Exported:
    try:
        return dlpack.read(capsule)
    except ValueError as error:
        raise InputError(f"{kind} gives an unusable DLPack capsule ({error}); pass another array.") from error


def _address(array: Any) -> int:
    try:
        return int(array)
    except (TypeError, ValueError) as error:
        kind = type(array).__name__
        raise InputError(f"{kind} is not on a CUDA device; pass a device array or its address.") from error


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether the array is in C order. The stride of a dimension with one element does not count."""
    if len(shape) != len(strides):
        return False
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def on_device(array: Any) -> bool:
    """Whether ``array`` is in CUDA memory."""
    return _interface(array) is not None or _cuda_by_dlpack(array) is not None


def array_length(array: Any) -> int:
    """The first dimension of an array in any memory. Raises InputError for an array without a shape."""
    interface = _interface(array)
    shape = getattr(array, "shape", ()) if interface is None else _read_interface(interface, type(array).__name__).shape
    if not shape:
        raise InputError(f"{type(array).__name__} has no shape; pass rows, the number of pictures, with it.")
    return int(shape[0])


def host_array(array: Any, shape: tuple[int, ...], dtype: type[np.generic], *, writable: bool = False) -> NDArray[Any]:
    """A NumPy view, never a copy, of exactly this shape and dtype.

    array      a NumPy array, an object with DLPack (a torch tensor) or a buffer (bytes, ctypes, cffi), or an address as
               an integer, which is not checked
    writable   refuse an array that cannot be written

    Raises InputError for another shape, dtype or layout, and for memory that is not the host's.
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
            f"{kind} is not an array of {list(shape)} in host memory ({error}); pass a NumPy array."
        ) from error
