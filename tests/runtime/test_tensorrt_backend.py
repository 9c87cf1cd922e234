"""The TensorRT backend on a TensorRT and a device of the imagination: what it asks of both, and in which order."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import tensorrt_rtx
from fake_cuda import FakeContext, FakeDriver, Misuse, Work, described

from cgd_deploy.errors import EngineError
from cgd_deploy.runtime.backends import tensorrt as module
from cgd_deploy.runtime.backends.tensorrt import (
    KEPT_ERRORS,
    SHARED,
    TensorRtBackend,
    TensorRtRtxBackend,
    error_log,
    last_error,
)
from cgd_deploy.runtime.cuda.lane import owned

SHAPE = (4, 4, 3)


class Context:
    """An execution context that refuses to run before it was set up as TensorRT demands.

    Nor does it forgive a new shape, or its end, while the device may still run its last batch.
    """

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.profile: tuple[int, int] | None = None
        self._kernel: FakeContext | None = None
        self._last: Work | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = (profile_index, stream_handle)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        if self._runs():
            raise Misuse("a context got another shape while its batch runs")
        self.shape = shape
        self._trt.resizes += 1
        return shape[0] <= self._trt.largest

    def infer_shapes(self) -> list[str]:
        return [] if self.shape else ["images"]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.shape and self.scratch and self.profile == (0, stream_handle)
        driver = self._trt.driver
        self._kernel = self._kernel or FakeContext(driver, SHAPE, self.scratch[0])
        accepted = not self._trt.refusing and self._kernel(
            stream_handle, self.shape[0], self.addresses["images"], self.addresses["descriptors"]
        )
        if accepted and not driver.captures(stream_handle):
            self._last = driver.log[-1]
        return accepted

    def _runs(self) -> bool:
        return self._last is not None and not self._trt.driver.has_run(self._last)

    def __del__(self) -> None:
        self._trt.freed_early += self._runs()


class FakeTensorRt:
    """As much of the module as the backend touches. ``rtx`` adds what only TensorRT-RTX has."""

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")

    def __init__(self, driver: FakeDriver, rtx: bool = False) -> None:
        self.driver = driver
        self.made = self.resizes = self.freed_early = 0
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.configs: list[Any] = []
        self.largest, self.names = 6, ["images", "descriptors"]
        self.refusing = False
        self.capturable = True
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def Runtime(self, log: Any) -> Any:
        def deserialize(payload: bytes) -> Any:
            if payload != b"plan":
                log.log(self.ILogger.WARNING, "something else")
                log.log(self.ILogger.ERROR, "the plan's magic tag does not match\nand more")
                return None
            return self._engine()

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def _engine(self) -> Any:
        shapes = {"images": (-1, *SHAPE), "descriptors": (-1, 3)}
        return SimpleNamespace(
            num_io_tensors=len(self.names),
            get_tensor_name=self.names.__getitem__,
            get_tensor_shape=shapes.__getitem__,
            get_tensor_profile_shape=lambda name, profile: [(n, *SHAPE) for n in (1, 4, self.largest)],
            device_memory_size_v2=100,
            create_execution_context=self._context,
            create_runtime_config=self._config,
        )

    def _config(self) -> Any:
        config = SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)
        self.configs.append(config)
        return config

    def _context(self, how: Any) -> Context:
        assert how == "ours" or how in self.configs
        context = Context(self)
        if how != "ours":
            context.is_stream_capturable = lambda stream: self.capturable  # type: ignore[attr-defined]
        self.contexts.add(context)
        self.made += 1
        return context


@pytest.fixture
def driver(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The device that TensorRT backends open."""
    monkeypatch.setattr(module, "CudaDriver", lambda: driver)
    return driver


def on_the_device(backend: TensorRtBackend, driver: FakeDriver, sizes: Sequence[int]) -> None:
    """Give batches of the caller's device memory to a stream of the caller's, then wait once and look at them all."""
    with ExitStack() as stack:
        stream, sent = owned(stack, driver.stream(), driver.destroy_stream), []
        try:
            for seed, rows in enumerate(sizes):
                pixels = batch(rows, seed)
                images, descriptors = (owned(stack, driver.malloc(rows * n), driver.free) for n in (48, 12))
                up, down = (owned(stack, driver.pinned(rows * n), driver.free_pinned) for n in (48, 12))
                up[:] = pixels.reshape(-1)
                driver.upload(images, up, stream)
                backend.streams.run_on(stream, rows, images, descriptors)
                driver.download(down, descriptors, stream)
                sent.append((pixels, down.view(np.float32).reshape(rows, 3)))
        finally:
            driver.finish(stream)
        for pixels, found in sent:
            np.testing.assert_array_equal(found, described(pixels))


@pytest.fixture
def trt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    trt = FakeTensorRt(driver)
    monkeypatch.setattr(module, "import_tensorrt", lambda kind: trt)
    return trt


def batch(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([n, seed]).integers(0, 256, (n, *SHAPE), np.uint8)


def test_descriptors_of_any_batch(trt: FakeTensorRt, driver: FakeDriver) -> None:
    with TensorRtBackend(b"plan", streams=2) as backend:
        for seed, n in enumerate([1, 2, 3, 6, 7, 20, 0, 5, 5, 5, 5, 5, 5, 5]):
            if n:
                np.testing.assert_array_equal(backend.run(batch(n, seed)), described(batch(n, seed)))
            else:
                assert backend.run(batch(0)).shape == (0, 3)
        assert "launch" in driver.calls


def test_one_context_for_each_lane_and_batch_size(trt: FakeTensorRt) -> None:
    with TensorRtBackend(b"plan", streams=2) as backend:
        backend.streams.warm_up()
        backend.streams.warm_up()
        shapes = sorted(context.shape[0] for context in trt.contexts if context.shape)
        assert shapes == [1, 1, 2, 2, 4, 4, 6, 6]
        assert len({context.scratch for context in trt.contexts}) == 2  # the contexts of a lane share their scratch


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("order", ["rising", "falling", "random", "beside batches of the host"])
def test_batches_of_every_size_on_the_device_share_a_few_contexts(
    trt: FakeTensorRt, driver: FakeDriver, lanes: int, order: str
) -> None:
    trt.largest = 64
    sizes = {"rising": [*range(1, 65)], "falling": [*range(64, 0, -1)]}.get(order)
    with TensorRtBackend(b"plan", streams=lanes) as backend:
        for seed in range(2):
            on_the_device(backend, driver, sizes or [*np.random.default_rng(seed).integers(1, 65, 150).tolist()])
            if order == "beside batches of the host":
                backend.streams.warm_up()
                np.testing.assert_array_equal(backend.run(batch(150)), described(batch(150)))
        buckets = len(backend.streams.layout.buckets)
        assert trt.made == len(trt.contexts) <= lanes * (buckets + SHARED)
    assert (len(trt.contexts), trt.freed_early) == (0, 0)


def test_a_few_sizes_that_come_again_keep_their_contexts(trt: FakeTensorRt, driver: FakeDriver) -> None:
    trt.largest = 64
    with TensorRtBackend(b"plan", streams=1) as backend:
        on_the_device(backend, driver, [3, 5, 6, 7] * 5)
        assert trt.resizes == 1 + SHARED  # the first is of the largest bucket
        on_the_device(backend, driver, [5, 9, 5, 9, 5, 9])
        assert trt.resizes == 2 + SHARED
        on_the_device(backend, driver, [6, 7])  # 3 made room for 9
        assert trt.resizes == 2 + SHARED


def test_only_a_new_size_waits_and_only_for_the_context_that_it_takes(trt: FakeTensorRt, driver: FakeDriver) -> None:
    trt.largest = 64
    waits = []
    synchronize = driver.synchronize
    driver.synchronize = lambda event: waits.append(event) or synchronize(event)  # type: ignore[method-assign]
    with TensorRtBackend(b"plan", streams=1) as backend:
        on_the_device(backend, driver, [3, 5, 6, 7, 7, 3, 5, 6, 8, 16])
        assert waits == []
        on_the_device(backend, driver, [7, 9, 9, 10])
        assert len(set(waits)) == len(waits) == 2


def test_a_refused_size_costs_no_context(trt: FakeTensorRt, driver: FakeDriver) -> None:
    trt.largest = 64
    with TensorRtBackend(b"plan", streams=1) as backend:
        made = []
        for rows in range(33, 45):
            trt.largest = 8
            with pytest.raises(EngineError, match=f"TensorRT refuses a batch of {rows}; build"):
                on_the_device(backend, driver, [rows])
            trt.largest = 64
            on_the_device(backend, driver, [rows, 3, 5])
            made.append(trt.made)
        assert made[-1] <= SHARED + 1
    assert trt.freed_early == 0


def test_a_refused_size_leaves_no_context_of_the_wrong_size(trt: FakeTensorRt, driver: FakeDriver) -> None:
    trt.largest = 64
    with TensorRtBackend(b"plan", streams=1) as backend:
        on_the_device(backend, driver, [3, 5, 6, 7])
        trt.largest = 8
        with pytest.raises(EngineError, match="TensorRT refuses a batch of 9"):
            on_the_device(backend, driver, [9])
        on_the_device(backend, driver, [3, 5, 6, 7])


def test_a_smaller_largest_batch(trt: FakeTensorRt) -> None:
    with TensorRtBackend(b"plan", max_batch=3, graphs=0) as backend:
        assert backend.streams.layout.buckets == (1, 2, 3)


def test_a_refused_enqueue(trt: FakeTensorRt) -> None:
    with TensorRtBackend(b"plan") as backend:
        trt.refusing = True
        with pytest.raises(EngineError, match="refused a batch of 2"):
            backend.run(batch(2))


def test_a_refused_plan(trt: FakeTensorRt) -> None:
    with pytest.raises(EngineError, match=r"refuses the plan \(the plan's magic tag does not match\); build"):
        TensorRtBackend(b"something else")


def test_the_log_keeps_the_latest_errors(trt: FakeTensorRt) -> None:
    log = error_log(trt)
    assert last_error(log) == "it gives no reason"
    for number in range(KEPT_ERRORS + 5):
        log.log(trt.ILogger.ERROR, f"error {number}\nand more")
        log.log(trt.ILogger.WARNING, "something else")
    assert (len(log.errors), last_error(log)) == (KEPT_ERRORS, f"error {KEPT_ERRORS + 4}")


def test_a_plan_of_another_model(trt: FakeTensorRt) -> None:
    trt.names = ["input", "descriptors"]
    with pytest.raises(EngineError, match=r"tensors \['descriptors', 'input'\], expected images and descriptors"):
        TensorRtBackend(b"plan")


def test_no_memory_for_a_context(trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "_context", lambda how: None)
    with pytest.raises(EngineError, match="cannot make an execution context; load the engine with fewer streams"):
        TensorRtBackend(b"plan")


@pytest.mark.parametrize("contexts", [3, 5, 7])
def test_no_memory_for_a_context_in_the_warm_up(
    trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch, contexts: int
) -> None:
    """Two lanes make a context each when they open and need four each in all; close frees what was made."""
    make = trt._context
    monkeypatch.setattr(trt, "_context", lambda how: make(how) if len(trt.contexts) < contexts else None)
    with (
        TensorRtBackend(b"plan", streams=2) as backend,
        pytest.raises(EngineError, match="cannot make an execution context; load the engine with fewer streams"),
    ):
        backend.streams.warm_up()


@pytest.mark.parametrize("capturable", [True, False])
def test_rtx_compiles_for_the_shape_and_says_what_it_can_capture(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, capturable: bool
) -> None:
    trt = FakeTensorRt(driver, rtx=True)
    trt.capturable = capturable
    monkeypatch.setattr(module, "import_tensorrt", lambda kind: trt if kind == "tensorrt-rtx" else None)
    with TensorRtRtxBackend(b"plan") as backend:
        backend.streams.warm_up()
        assert ("capture" in driver.calls) is capturable
    assert {config.dynamic_shapes_kernel_specialization_strategy for config in trt.configs} == {"eager"}


def test_the_real_rtx_has_all_of_it() -> None:
    trt = tensorrt_rtx()
    used = {
        "Runtime": "deserialize_cuda_engine engine_host_code_allowed",
        "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_shape get_tensor_profile_shape device_memory_size_v2 "
        "create_execution_context create_runtime_config",
        "IRuntimeConfig": "dynamic_shapes_kernel_specialization_strategy set_execution_context_allocation_strategy",
        "IExecutionContext": "set_device_memory set_optimization_profile_async set_input_shape infer_shapes "
        "set_tensor_address execute_async_v3 is_stream_capturable",
        "ILogger": "ERROR INTERNAL_ERROR log",
        "DynamicShapesKernelSpecializationStrategy": "EAGER",
        "ExecutionContextAllocationStrategy": "USER_MANAGED",
    }
    for name, members in used.items():
        for member in members.split():
            assert hasattr(getattr(trt, name), member), f"{name}.{member}"
