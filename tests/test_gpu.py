"""What only a GPU can show. Each test skips with its reason where there is none; run them with ``pytest -m gpu``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.backends.tensorrt import TensorRtBackend
from cgd_deploy.cuda import CudaDriver, find_device
from cgd_deploy.enginefile import read_engine
from cgd_deploy.errors import CgdError
from cgd_deploy.retrieval import cosines


def why_not() -> str:
    try:
        find_device()
    except CgdError as error:
        return str(error)
    return ""


REASON = why_not()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON or "there is a GPU")]

TF32_COSINE = 0.999


@pytest.fixture
def driver() -> CudaDriver:
    return CudaDriver()


@pytest.fixture(scope="session")
def model(model_onnx: Path) -> bytes:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider; install the extra gpu")
    return model_onnx.read_bytes()


@pytest.fixture(scope="session")
def plan(model_onnx: Path) -> bytes:
    """The model as a TensorRT plan for this GPU, in FP32."""
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    from cgd_deploy.spec import Precision
    from cgd_export.engine_from_onnx import engine_from_onnx

    path = model_onnx.with_name("tensorrt.cgd")
    engine_from_onnx(model_onnx, path, Precision.FP32, backend="tensorrt")
    return read_engine(path).payload


@pytest.fixture
def buffers(driver: CudaDriver) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    """A device pointer, two pinned arrays of the same 4096 bytes, and a stream."""
    pointer, one, other, stream = driver.malloc(4096), driver.pinned(4096), driver.pinned(4096), driver.stream()
    yield pointer, one, other, stream
    driver.finish(stream)
    driver.destroy_stream(stream)
    driver.free_pinned(other)
    driver.free_pinned(one)
    driver.free(pointer)


def test_there_and_back(driver: CudaDriver, buffers: Any) -> None:
    pointer, one, other, stream = buffers
    one[:] = np.random.default_rng(0).integers(0, 256, one.size, np.uint8)
    event = driver.event()
    driver.upload(pointer, one, stream)
    driver.download(other, pointer, stream)
    driver.record(event, stream)
    driver.synchronize(event)
    driver.destroy_event(event)
    np.testing.assert_array_equal(other, one)


def test_one_stream_waits_for_another(driver: CudaDriver, buffers: Any) -> None:
    pointer, one, other, up = buffers
    down, event = driver.stream(), driver.event()
    for value in range(50):
        one[:] = value
        driver.upload(pointer, one, up)
        driver.record(event, up)
        driver.wait(down, event)
        driver.download(other, pointer, down)
        driver.finish(down)
        assert (other == value).all()
    driver.destroy_event(event)
    driver.destroy_stream(down)


def test_a_graph_runs_again(driver: CudaDriver, buffers: Any) -> None:
    pointer, one, other, stream = buffers

    def both_ways() -> None:
        driver.upload(pointer, one, stream)
        driver.download(other, pointer, stream)

    other[:] = 0
    one[:] = 1
    graph = driver.capture(stream, both_ways)
    driver.finish(stream)
    assert (other == 0).all()  # captured, not run
    for value in (1, 2, 3):
        one[:] = value
        driver.launch(graph, stream)
        driver.finish(stream)
        assert (other == value).all()
    driver.destroy_graph(graph)


def test_a_wrong_call_is_an_error(driver: CudaDriver) -> None:
    with pytest.raises(CgdError, match="cudaMalloc failed"):
        driver.malloc(1 << 50)


def test_onnxruntime_lanes_give_what_torch_gives(
    model: bytes, pixels: np.ndarray, torch_descriptors: Callable[[np.ndarray], np.ndarray]
) -> None:
    with OnnxRuntimeBackend(model, device="cuda", max_batch=8) as backend:
        found = backend.run(pixels)
    assert cosines(found, torch_descriptors(pixels)).min() > TF32_COSINE


def test_a_batch_gives_what_its_pictures_give(model: bytes, pixels: np.ndarray) -> None:
    with OnnxRuntimeBackend(model, device="cuda", max_batch=8) as backend:
        together = backend.run(pixels[:8])
        alone = np.concatenate([backend.run(pixels[i : i + 1]) for i in range(8)])
    assert cosines(together, alone).min() > TF32_COSINE


def test_four_streams_give_what_one_gives(model: bytes, pixels: np.ndarray) -> None:
    found = []
    for streams in (1, 4):
        with OnnxRuntimeBackend(model, device="cuda", streams=streams, max_batch=4) as backend:
            assert backend.streams
            batches = [pixels[start : start + 4] for start in range(0, 28, 4)] * 10
            found.append(np.concatenate(list(backend.streams.run_many(batches))))
    assert cosines(*found).min() > TF32_COSINE


def test_batches_in_flight_beat_one_after_another(model: bytes, pixels: np.ndarray) -> None:
    with OnnxRuntimeBackend(model, device="cuda", streams=2, max_batch=8) as backend:
        assert backend.streams
        backend.streams.warm_up()
        batches = [pixels[:8]] * 60
        one_by_one, overlapped = [], []
        for _ in range(5):
            started = time.perf_counter()
            for images in batches:
                backend.run(images)
            between = time.perf_counter()
            for _ in backend.streams.run_many(batches):
                pass
            one_by_one.append(between - started)
            overlapped.append(time.perf_counter() - between)
    assert min(overlapped) < min(one_by_one)


def test_torch_tensors_in_and_out(model: bytes, pixels: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    with OnnxRuntimeBackend(model, device="cuda", max_batch=8) as backend:
        assert backend.streams
        expected = backend.run(pixels[:5])
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            images = torch.from_numpy(pixels[:5]).cuda()
            descriptors = torch.empty(expected.shape, device="cuda")
            backend.streams.run_on(stream, 5, images, descriptors)
            found = descriptors.cpu().numpy()
    assert cosines(found, expected).min() > TF32_COSINE


def test_pycuda_arrays_in_and_out(model: bytes, pixels: np.ndarray) -> None:
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    import pycuda.autoprimaryctx
    import pycuda.driver
    from pycuda import gpuarray

    with OnnxRuntimeBackend(model, device="cuda", max_batch=8) as backend:
        assert backend.streams
        expected = backend.run(pixels[:5])
        stream = pycuda.driver.Stream()
        images = gpuarray.to_gpu_async(pixels[:5], stream=stream)
        descriptors = gpuarray.empty(expected.shape, np.float32)
        backend.streams.run_on(stream, 5, images, descriptors)
        found = descriptors.get_async(stream=stream)
        stream.synchronize()
    assert cosines(found, expected).min() > TF32_COSINE


def test_tensorrt_with_graphs_without_and_torch(
    plan: bytes, pixels: np.ndarray, torch_descriptors: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = []
    for graphs in (0, 32):
        with TensorRtBackend(plan, streams=2, graphs=graphs) as backend:
            backend.streams.warm_up()
            found.append(backend.run(pixels))
    np.testing.assert_array_equal(*found)
    assert cosines(found[0], torch_descriptors(pixels)).min() > TF32_COSINE


def test_tensorrt_on_four_streams(plan: bytes, pixels: np.ndarray) -> None:
    found = []
    for streams in (1, 4):
        with TensorRtBackend(plan, streams=streams) as backend:
            found.append(np.concatenate(list(backend.streams.run_many([pixels[:4], pixels[4:11], pixels[:1]] * 20))))
    np.testing.assert_array_equal(*found)
