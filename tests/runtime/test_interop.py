"""Arrays and streams as pycuda, CuPy, torch, JAX and cuda.core hand them over, and what breaks their protocols."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cgd_deploy.errors import InputError
from cgd_deploy.runtime.interop import DeviceArray, on_device, stream_handle, streams_of

SHAPE = (2, 4, 4, 3)
CONTIGUOUS = (48, 12, 3, 1)


class FromPycuda:
    """As much of a pycuda DeviceAllocation as we use."""

    def __int__(self) -> int:
        return 4096


def described_as(**changes: Any) -> SimpleNamespace:
    """An array with an interface of version 2, which has no stream."""
    interface = {"shape": SHAPE, "typestr": "|u1", "data": (4096, False), "strides": None, "version": 2}
    return SimpleNamespace(__cuda_array_interface__={**interface, **changes})


def pointer(array: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> int:
    return DeviceArray(array).pointer(shape, np.uint8, 1, **options)


class FromCudaCore:
    """A stream with the protocol of cuda.core, whose ``handle`` is an object."""

    handle = object()

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 7


@pytest.mark.parametrize(
    "stream",
    [7, FromCudaCore(), SimpleNamespace(handle=7), SimpleNamespace(cuda_stream=7), SimpleNamespace(ptr=7)],
)
def test_streams_of_other_libraries(stream: Any) -> None:
    assert stream_handle(stream) == 7


def test_the_null_stream_is_the_legacy_default_stream() -> None:
    for stream in (0, 1, SimpleNamespace(cuda_stream=0), SimpleNamespace(ptr=0)):
        assert stream_handle(stream) == 1


@pytest.mark.parametrize("stream", [None, "7 up", object(), -1, SimpleNamespace(ptr=None)])
def test_what_is_no_stream(stream: Any) -> None:
    with pytest.raises(InputError, match=r"is not a CUDA stream; pass a pycuda, torch or CuPy stream or its handle\.$"):
        stream_handle(stream)


def test_the_streams_that_a_call_is_ordered_with() -> None:
    version_2, none, legacy, thread, own = map(
        DeviceArray, [described_as(), *(described_as(stream=stream) for stream in (None, 1, 2, 99))]
    )
    assert streams_of(None, version_2, none) == [1]
    assert streams_of(None, legacy, thread) == [1, 2]
    assert streams_of(None, none, own) == [99]
    assert streams_of(7, own, thread) == [7, 99, 2]
    assert streams_of(99, own, own) == [99]
    assert streams_of(0, legacy, none) == [1]


@pytest.mark.parametrize("stream", [0, -1])
def test_streams_that_the_interface_forbids(stream: int) -> None:
    with pytest.raises(
        InputError, match=rf"names stream {stream}, which .* forbids; expected None, 1 for the legacy .* a handle\.$"
    ):
        DeviceArray(described_as(stream=stream))


def test_arrays_of_other_libraries() -> None:
    for array in (4096, FromPycuda(), described_as(), described_as(strides=CONTIGUOUS), described_as(stream=7)):
        assert pointer(array) == 4096
    one = described_as(shape=(1, 4, 4, 3), strides=(96, 12, 3, 1))  # every second picture, of two
    assert pointer(one, (1, 4, 4, 3)) == 4096
    assert pointer(described_as(data=(4096, True))) == 4096


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (described_as(typestr="<f4"), r"float32 \[2, 4, 4, 3\]; expected uint8"),
        (described_as(shape=(1, 4, 4, 3)), r"uint8 \[1, 4, 4, 3\]; expected uint8 \[2, 4, 4, 3\]"),
        (described_as(strides=(96, 12, 3, 1)), "not C-contiguous"),
        (described_as(strides=(48, 12, 3)), "not C-contiguous"),
        (described_as(mask=object()), "has a mask"),
        (described_as(data=None), "breaks the CUDA array interface"),
        (described_as(typestr="pixels"), "breaks the CUDA array interface"),
        (SimpleNamespace(__cuda_array_interface__={"version": 3}), r"breaks the CUDA array interface \(KeyError"),
        (np.zeros(SHAPE, np.uint8), "ndarray is not on a CUDA device"),
        (None, "NoneType is not on a CUDA device"),
    ],
)
def test_arrays_that_do_not_fit(array: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pointer(array)


@pytest.mark.parametrize("array", [described_as(stream="one"), SimpleNamespace(__cuda_array_interface__=7)])
def test_interfaces_that_cannot_be_read(array: Any) -> None:
    with pytest.raises(InputError, match="breaks the CUDA array interface"):
        DeviceArray(array)


def test_read_only_memory_is_not_written() -> None:
    with pytest.raises(InputError, match="for the descriptors is read-only"):
        pointer(described_as(data=(4096, True)), writable=True)


def test_a_tensor_that_requires_a_gradient() -> None:
    class Tensor:
        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.\nUse detach().")

    for use in (DeviceArray, on_device):
        with pytest.raises(InputError, match=r"Tensor gives no access to its memory \(Can't get .* requires grad\)"):
            use(Tensor())


def with_dlpack(kind: int, ordinal: int, export: Any = None) -> Any:
    """An array that offers DLPack alone."""
    return SimpleNamespace(__dlpack__=export, __dlpack_device__=lambda: (kind, ordinal))


def test_where_dlpack_says_an_array_is() -> None:
    assert on_device(with_dlpack(2, 0)) and on_device(with_dlpack(13, 1))
    assert not on_device(with_dlpack(1, 0)) and not on_device(with_dlpack(3, 0)) and not on_device(with_dlpack(10, 0))
    assert on_device(with_dlpack(2, 1))
    with pytest.raises(InputError, match=r"on CUDA device 1, and the engine on device 0; copy it there, or"):
        pointer(with_dlpack(2, 1))


def test_a_library_that_refuses_the_stream() -> None:
    def refuse(**_: Any) -> Any:
        raise BufferError("per-thread default stream is not supported.")

    with pytest.raises(InputError, match=r"with stream 2 \(per-thread default stream is not supported\); pass another"):
        DeviceArray(with_dlpack(2, 0, refuse)).pointer(SHAPE, np.uint8, 2)
    with pytest.raises(InputError, match="gives an unusable DLPack capsule"):
        DeviceArray(with_dlpack(2, 0, lambda **_: None)).pointer(SHAPE, np.uint8, 2)


def test_an_array_on_no_real_device_is_no_device_array() -> None:
    import torch

    assert not on_device(torch.zeros(1, device="meta"))
