"""Descriptors written where the caller wants them, from pixels where the caller has them."""

from __future__ import annotations

import ctypes
import tracemalloc

import numpy as np
import pytest
from conftest import FAKE_SPEC

from cgd_deploy import InputError, load
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.runtime.interop import host_array

SIDE = FAKE_SPEC.input_size[0]
BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture
def fake(fake_engine):
    with load(fake_engine) as engine:
        yield engine


@pytest.fixture(scope="module", params=BACKENDS)
def real(request, engines):
    with load(engines[request.param, "fp32"], threads=2) as engine:
        yield engine


def test_numpy_arrays(real, pixels):
    whole = np.full((len(pixels) + 2, 96), 7, np.float32)
    real.embed_into(pixels, whole[1:-1])
    assert np.array_equal(whole[1:-1], real.embed(pixels))
    assert (whole[[0, -1]] == 7).all()


def test_torch_tensors_by_dlpack(real, pixels):
    import torch

    descriptors = torch.zeros(5, 96)
    real.embed_into(torch.from_numpy(pixels[:5].copy()), descriptors)
    assert np.array_equal(descriptors.numpy(), real.embed(pixels[:5]))


def test_buffers_and_addresses(real, pixels):
    expected = real.embed(pixels[:2])
    descriptors = (ctypes.c_float * (2 * 96))()
    real.embed_into(pixels[:2].tobytes(), descriptors, rows=2)
    assert np.array_equal(np.frombuffer(descriptors, np.float32).reshape(2, 96), expected)
    again = np.zeros((2, 96), np.float32)
    real.embed_into(pixels.ctypes.data, again.ctypes.data, rows=2)
    assert np.array_equal(again, expected)


def test_batches_larger_than_the_engines(fake):
    pixels = golden_images(FAKE_SPEC, 19)
    found = np.zeros((19, 24), np.float32)
    fake.embed_into(pixels, found)
    assert np.array_equal(found, fake.embed(pixels))


def test_parts_of_a_batch_in_streams(engines, pixels):
    found = np.zeros((len(pixels), 96), np.float32)
    with load(engines["openvino", "fp32"], threads=2, streams=2) as engine:
        engine.embed_into(pixels, found)
        assert np.abs(found - engine.embed(pixels)).max() <= 1e-6


def test_no_pixel_is_copied_on_the_way_to_the_backend(fake, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fake._backend, "run_into", lambda images, out: seen.append((images.ctypes.data, out.ctypes.data))
    )
    pixels, found = golden_images(FAKE_SPEC, 8), np.zeros((8, 24), np.float32)
    fake.embed_into(pixels, found)
    assert seen == [(pixels.ctypes.data, found.ctypes.data)]


def test_no_pixel_is_copied_in_the_backend(real, pixels):
    """NumPy's memory is what tracemalloc sees: not even one picture's worth of it is taken."""
    found = np.zeros((len(pixels), 96), np.float32)
    real.embed_into(pixels, found)
    tracemalloc.start()
    try:
        real.embed_into(pixels, found)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < pixels[0].nbytes


def test_openvino_reads_and_writes_the_callers_memory(engines, pixels):
    found = np.zeros((8, 96), np.float32)
    with load(engines["openvino", "fp32"], threads=2) as engine:
        engine.embed_into(pixels[:8], found)
        request = engine._backend._idle.get_nowait()
        assert request.get_input_tensor().data.ctypes.data == pixels.ctypes.data
        assert request.get_output_tensor().data.ctypes.data == found.ctypes.data


PIXELS = golden_images(FAKE_SPEC, 2)
FOUND = np.zeros((2, 24), np.float32)
READ_ONLY = FOUND.copy()
READ_ONLY.flags.writeable = False


class OnDevice:
    __cuda_array_interface__ = {"shape": (2, SIDE, SIDE, 3), "typestr": "|u1", "data": (0, False), "version": 3}  # noqa: RUF012


@pytest.mark.parametrize(
    ("images", "descriptors", "options", "words"),
    [
        (PIXELS[:, :-1], FOUND, {}, "expected uint8"),
        (PIXELS.astype(np.float32), FOUND, {}, "expected uint8"),
        (PIXELS[:, :, ::-1], FOUND, {}, "C-contiguous"),
        (PIXELS, FOUND[:1], {}, "expected float32"),
        (PIXELS, FOUND.astype(np.float64), {}, "expected float32"),
        (PIXELS, np.zeros((24, 2), np.float32).T, {}, "C-contiguous"),
        (PIXELS, READ_ONLY, {}, "read-only"),
        (PIXELS, bytes(2 * 24 * 4), {}, "read-only"),
        (PIXELS.tobytes(), FOUND, {}, "pass rows"),
        (PIXELS.tobytes()[:-1], FOUND, {"rows": 2}, "is not an array of"),
        pytest.param(PIXELS.ctypes.data, FOUND, {}, "pass rows", id="address"),
        (PIXELS.tolist(), FOUND, {"rows": 2}, "is not an array of"),
        (OnDevice(), FOUND, {}, "runs on the CPU"),
        (PIXELS, FOUND, {"stream": 0}, "runs on the CPU"),
    ],
)
def test_memory_that_does_not_fit_is_refused(fake, images, descriptors, options, words):
    with pytest.raises(InputError, match=words):
        fake.embed_into(images, descriptors, **options)
    assert not FOUND.any()


def test_device_memory_goes_to_the_streams(fake, monkeypatch):
    class Streams:
        def run_on(self, *arguments):
            self.got = arguments

    streams = Streams()
    monkeypatch.setattr(fake._backend, "streams", streams)
    images, descriptors = OnDevice(), object()
    fake.embed_into(images, descriptors)
    assert streams.got == (None, 2, images, descriptors)
    fake.embed_into(1234, 5678, rows=3, stream=99)
    assert streams.got == (99, 3, 1234, 5678)


def test_a_view_is_no_copy():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for given in (array, array.ctypes.data, memoryview(array)):
        assert host_array(given, (2, 3), np.uint8).ctypes.data == array.ctypes.data
