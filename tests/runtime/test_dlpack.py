"""Capsules of real libraries, read field by field."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from cgd_deploy.runtime import dlpack
from cgd_deploy.runtime.dlpack import Exported, read

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("array", [ARRAY, ARRAY[:, ::2], ARRAY.T, ARRAY[1:], ARRAY.astype(np.uint8)])
def test_numpy_arrays(array: np.ndarray) -> None:
    for capsule in (array.__dlpack__(), array.__dlpack__(max_version=(1, 0))):
        found = read(capsule)
        assert (found.pointer, found.shape, found.dtype) == (array.ctypes.data, array.shape, array.dtype.name)
        contiguous = found.strides is None and array.flags.c_contiguous  # what earlier releases of NumPy leave out
        assert (contiguous or found.strides == array.strides) and not found.read_only


def test_read_only_arrays() -> None:
    array = ARRAY.copy()
    array.flags.writeable = False
    assert read(array.__dlpack__(max_version=(1, 0))).read_only


def test_torch_tensors() -> None:
    import torch

    tensor = torch.zeros(6, 4, dtype=torch.bfloat16)[2:, ::2]
    for capsule in (tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 0))):
        found = read(capsule)
        assert (found.pointer, found.shape, found.dtype) == (tensor.data_ptr(), (4, 2), "bfloat16")
        assert found.strides == (8, 4)


def test_what_is_no_capsule() -> None:
    for other in (None, 7, ARRAY):
        with pytest.raises(ValueError, match="no unused DLPack capsule"):
            read(other)


def test_a_capsule_of_a_later_layout() -> None:
    capsule = ARRAY.__dlpack__(max_version=(1, 0))
    ctypes.c_uint32.from_address(dlpack._address_in(capsule, b"dltensor_versioned")).value = 2
    with pytest.raises(ValueError, match=r"DLPack 2\.\d+, expected 1\.x"):
        read(capsule)


def test_libraries_older_than_versions_are_asked_without_one() -> None:
    class Old:
        def __dlpack__(self, *, stream: int) -> Any:
            return ("capsule", stream)

    assert dlpack.export(Old(), 5) == ("capsule", 5)


def test_a_capsule_without_strides_is_c_contiguous() -> None:
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    shape = (ctypes.c_int64 * 2)(3, 5)
    tensor = dlpack._Tensor(data=4096, device_type=2, ndim=2, type_code=2, bits=32, lanes=1, shape=shape, byte_offset=8)
    found = read(new(ctypes.addressof(tensor), b"dltensor", None))
    assert found == Exported(pointer=4104, shape=(3, 5), dtype="float32", strides=None, read_only=False)
