"""Reads address, shape and dtype from DLPack capsules of arrays on a device. Copies and frees nothing."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

CUDA, CUDA_MANAGED = 2, 13
"""DLDeviceType of CUDA memory and of managed CUDA memory."""
READ_ONLY = 1
TYPE_NAMES = {0: "int", 1: "uint", 2: "float", 3: "opaque", 4: "bfloat", 5: "complex", 6: "bool"}
"""Names by DLDataTypeCode; ``read`` appends the number of bits."""
NEWEST = (1, 0)
"""The newest layout that ``read`` knows. Libraries may also answer with the old layout, which has no version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """An array as its library describes it.

    strides     bytes from one element to the next in each dimension; None: C-contiguous
    read_only   whether the library forbids writing; False if the library does not say
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None
    read_only: bool


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_has_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def export(array: Any, stream: int) -> Any:
    """The capsule of an array on CUDA. The array's library makes ``stream`` wait for the library's work on the array.

    stream   a handle; 1 is the legacy default stream, 2 the per-thread default stream

    Raises every error of the library.
    """
    try:
        return array.__dlpack__(stream=stream, max_version=NEWEST)
    except TypeError:  # an old library without max_version; another error comes again
        return array.__dlpack__(stream=stream)


def read(capsule: Any) -> Exported:
    """The array in a capsule, valid while the array lives. Raises ValueError for another object or layout."""
    if _has_name(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_address_in(capsule, b"dltensor_versioned"))
        if managed.major != NEWEST[0]:
            raise ValueError(f"DLPack {managed.major}.{managed.minor}, expected {NEWEST[0]}.x")
        tensor, read_only = managed.tensor, bool(managed.flags & READ_ONLY)
    elif _has_name(capsule, b"dltensor"):
        tensor, read_only = _Tensor.from_address(_address_in(capsule, b"dltensor")), False
    else:
        raise ValueError("no unused DLPack capsule")
    lanes = f"x{tensor.lanes}" if tensor.lanes > 1 else ""
    itemsize = tensor.bits * tensor.lanes // 8
    return Exported(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        dtype=f"{TYPE_NAMES.get(tensor.type_code, 'unknown')}{tensor.bits}{lanes}",
        strides=tuple(itemsize * stride for stride in tensor.strides[: tensor.ndim]) if tensor.strides else None,
        read_only=read_only,
    )
