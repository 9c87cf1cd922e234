"""What only a GPU can show. Each test skips with its reason where there is none; run them with ``pytest -m gpu``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC
from torch_lane import LAYOUT, LONG, TorchLane, expected

from cgd_deploy.errors import CgdError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from cgd_deploy.runtime.backends.tensorrt import TensorRtBackend
from cgd_deploy.runtime.cuda.driver import CudaDriver, find_device, import_cudart
from cgd_deploy.runtime.cuda.nvjpeg import nvjpeg_batches
from cgd_deploy.runtime.cuda.streams import Streams
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.enginefile import read_engine


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


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return module


def some_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *LAYOUT.image_shape), np.uint8)


def is_done(event: int) -> bool:
    """Whether the GPU is past what an event stands for; does not wait."""
    cudart = import_cudart()
    (status,) = cudart.cudaEventQuery(event)
    assert status in (cudart.cudaError_t.cudaSuccess, cudart.cudaError_t.cudaErrorNotReady)
    return status == cudart.cudaError_t.cudaSuccess


@pytest.mark.parametrize("graphs", [0, 32])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_every_batch_gets_its_own_descriptors(driver: CudaDriver, torch: Any, lanes: int, graphs: int) -> None:
    """200 batches of changing sizes, many on their way at once, padded and replayed by graphs."""
    batches = [some_images(1 + number % 8, number) for number in range(200)]
    streams = Streams(driver, lambda stream: TorchLane(torch), LAYOUT, lanes=lanes, graphs=graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that a lane runs without graphs would be one
        for images, found in zip(batches, streams.run_many(batches), strict=True):
            np.testing.assert_array_equal(found, expected(images))
    streams.close()


def test_a_copy_overlaps_the_computation_before_it(driver: CudaDriver, torch: Any) -> None:
    """Batch 2 has been uploaded while batch 1 still computes."""
    streams = Streams(driver, lambda stream: TorchLane(torch, LONG), LAYOUT, lanes=1)
    streams.warm_up()
    (lane,) = streams._lanes
    first, second = some_images(8, 1), some_images(8, 2)
    waiting = [streams.submit(first), streams.submit(second)]
    computing, copying = (pending._slot for pending in waiting)
    while not is_done(copying.uploaded):
        pass
    assert not is_done(computing.computed)
    for pending, images in zip(waiting, (first, second), strict=True):
        np.testing.assert_array_equal(pending.result(), expected(images))
    assert lane.failure is None
    streams.close()


def test_lanes_compute_at_the_same_time(driver: CudaDriver, torch: Any) -> None:
    """A short batch of one lane is done while a long one of another lane, sent before it, still computes."""
    cycles = iter([LONG, 0])
    streams = Streams(driver, lambda stream: TorchLane(torch, next(cycles)), LAYOUT, lanes=2)
    streams.warm_up()
    slow, quick = streams._lanes
    images = some_images(8)
    long, short = slow.submit(images), quick.submit(images)
    np.testing.assert_array_equal(short.result(), expected(images))
    assert not is_done(long._slot.computed)
    np.testing.assert_array_equal(long.result(), expected(images))
    streams.close()


def test_the_callers_stream_is_kept_in_order(driver: CudaDriver, torch: Any) -> None:
    """What the caller's stream still computes is waited for, and what it is given afterwards sees the descriptors."""
    streams = Streams(driver, lambda stream: TorchLane(torch), LAYOUT, lanes=2)
    images = some_images(5)
    mine = torch.cuda.Stream()
    with torch.cuda.stream(mine):
        source = torch.zeros(images.shape, dtype=torch.uint8, device="cuda")
        target = torch.empty((5, LAYOUT.dim), device="cuda")
        for _ in range(20):
            source.zero_()
            torch.cuda._sleep(LONG // 20)
            source.copy_(torch.from_numpy(images).cuda())
            streams.run_on(mine, 5, source, target)
            found = target.clone()
            target.fill_(-1)
            np.testing.assert_array_equal(found.cpu().numpy(), expected(images))
    streams.close()


def test_nothing_of_the_device_is_left_behind(driver: CudaDriver, torch: Any) -> None:
    def use_and_close() -> int:
        streams = Streams(driver, lambda stream: TorchLane(torch), LAYOUT, lanes=4)
        streams.warm_up()
        streams.close()
        torch.cuda.synchronize()
        return torch.cuda.mem_get_info()[0]

    use_and_close()  # what torch and the driver keep for the process
    before = use_and_close()
    after = [use_and_close() for _ in range(20)][-1]
    assert after >= before


def test_nvjpeg_gives_pixels_close_to_pillows(picture_list: ImageList) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed; the extra nvjpeg has it")
    [(_, expected)] = batches(picture_list, SPEC, len(picture_list))
    notes: list[str] = []
    [(indices, found)] = nvjpeg_batches(picture_list, SPEC, len(picture_list), on_note=notes.append)
    assert indices == list(range(len(picture_list))) and notes == []
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() < 1 and difference.max() < 32


def on_onnxruntime(model: bytes, **settings: Any) -> OnnxRuntimeCudaBackend:
    return OnnxRuntimeCudaBackend(model, input_size=SPEC.input_size, dim=SPEC.dim, **settings)


def test_onnxruntime_lanes_give_what_torch_gives(
    model: bytes, pixels: np.ndarray, torch_descriptors: Callable[[np.ndarray], np.ndarray]
) -> None:
    with on_onnxruntime(model, max_batch=8) as backend:
        found = backend.run(pixels)
    assert cosines(found, torch_descriptors(pixels)).min() > TF32_COSINE


def test_onnxruntime_computes_tf32_only_if_asked(
    model: bytes, pixels: np.ndarray, torch_descriptors: Callable[[np.ndarray], np.ndarray]
) -> None:
    if int(find_device().compute_capability.split(".")[0]) < 8:
        pytest.skip("this GPU has no TF32")
    found = []
    for tf32 in (False, True):
        with on_onnxruntime(model, max_batch=8, tf32=tf32) as backend:
            found.append(backend.run(pixels))
    assert not np.array_equal(*found)
    assert cosines(found[1], torch_descriptors(pixels)).min() > TF32_COSINE


def test_a_batch_gives_what_its_pictures_give(model: bytes, pixels: np.ndarray) -> None:
    with on_onnxruntime(model, max_batch=8) as backend:
        together = backend.run(pixels[:8])
        alone = np.concatenate([backend.run(pixels[i : i + 1]) for i in range(8)])
    assert cosines(together, alone).min() > TF32_COSINE


def test_four_streams_give_what_one_gives(model: bytes, pixels: np.ndarray) -> None:
    found = []
    for streams in (1, 4):
        with on_onnxruntime(model, streams=streams, max_batch=4) as backend:
            assert backend.streams
            batches = [pixels[start : start + 4] for start in range(0, 28, 4)] * 10
            found.append(np.concatenate(list(backend.streams.run_many(batches))))
    assert cosines(*found).min() > TF32_COSINE


def test_torch_tensors_in_and_out(model: bytes, pixels: np.ndarray, torch: Any) -> None:
    with on_onnxruntime(model, max_batch=8) as backend:
        assert backend.streams
        expected = backend.run(pixels[:5])
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            images = torch.from_numpy(pixels[:5]).cuda()
            descriptors = torch.empty(expected.shape, device="cuda")
            backend.streams.run_on(stream, 5, images, descriptors)
            found = descriptors.cpu().numpy()
    assert cosines(found, expected).min() > TF32_COSINE


def test_torch_tensors_without_a_stream(model: bytes, pixels: np.ndarray, torch: Any) -> None:
    """Made on torch's default stream and, by DLPack, waited for on another; memory of the host is refused."""
    with on_onnxruntime(model, max_batch=8) as backend:
        assert backend.streams
        expected = backend.run(pixels[:5])
        for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                images = torch.from_numpy(pixels[:5]).cuda()
                descriptors = torch.empty(expected.shape, device="cuda")
                backend.streams.run_on(None, 5, images, descriptors)
            torch.cuda.default_stream().synchronize()
            assert cosines(descriptors.cpu().numpy(), expected).min() > TF32_COSINE
        with pytest.raises(CgdError, match="not in CUDA memory"):
            backend.streams.run_on(None, 5, pixels.ctypes.data, descriptors)


def test_pycuda_arrays_in_and_out(model: bytes, pixels: np.ndarray) -> None:
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    import pycuda.autoprimaryctx
    import pycuda.driver
    from pycuda import gpuarray

    with on_onnxruntime(model, max_batch=8) as backend:
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
