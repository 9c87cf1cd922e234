"""The TensorRT backend on a TensorRT and a device of the imagination: what it asks of both, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeContext, FakeDriver, described

from cgd_deploy.backends import tensorrt as module
from cgd_deploy.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend
from cgd_deploy.errors import EngineError

SHAPE = (4, 4, 3)


class Context:
    """An execution context that refuses to run before it was set up as TensorRT demands."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.profile: tuple[int, int] | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = (profile_index, stream_handle)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        self.shape = shape
        return shape[0] <= self._trt.largest

    def infer_shapes(self) -> list[str]:
        return [] if self.shape else ["images"]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.shape and self.scratch and self.profile == (0, stream_handle)
        run = self._trt.kernels.setdefault(id(self), FakeContext(self._trt.driver, SHAPE, self.scratch[0]))
        return not self._trt.refusing and run(
            stream_handle, self.shape[0], self.addresses["images"], self.addresses["descriptors"]
        )


class FakeTensorRt:
    """As much of the module as the backend touches. ``rtx`` adds what only TensorRT-RTX has."""

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")

    def __init__(self, driver: FakeDriver, rtx: bool = False) -> None:
        self.driver = driver
        self.contexts: list[Context] = []
        self.configs: list[Any] = []
        self.kernels: dict[int, FakeContext] = {}
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
        self.contexts.append(context)
        return context


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    driver = FakeDriver()
    monkeypatch.setattr(module, "CudaDriver", lambda: driver)
    yield driver
    driver.assert_empty()


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


def test_a_plan_of_another_model(trt: FakeTensorRt) -> None:
    trt.names = ["input", "descriptors"]
    with pytest.raises(EngineError, match=r"tensors \['descriptors', 'input'\], expected images and descriptors"):
        TensorRtBackend(b"plan")


def test_no_memory_for_a_context(trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "_context", lambda how: None)
    with pytest.raises(EngineError, match="cannot make an execution context; load the engine with fewer streams"):
        TensorRtBackend(b"plan")


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
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError)
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
