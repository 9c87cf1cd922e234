"""ONNX models on ONNX Runtime's CUDA provider. No node runs on the CPU instead."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, install_line
from ..cuda.driver import LESS_MEMORY, CudaDriver, Driver, OutOfDeviceMemory
from ..cuda.lane import Layout
from ..cuda.streams import LANES, Streams, bucket_sizes
from .base import DESCRIPTORS, IMAGES, Backend
from .onnxruntime import cannot_load, first_line, import_onnxruntime, session_options

PROVIDER = "CUDAExecutionProvider"
MAX_BATCH = 32
CPU_NODES = "fallback to CPU EP has been explicitly disabled"
"""Part of ONNX Runtime's error about nodes that its CUDA provider does not take."""
NO_MEMORY = ("out of memory", "Failed to allocate memory", "_ALLOC_FAILED")
"""Parts of the errors of ONNX Runtime, CUDA, cuBLAS and cuDNN about a GPU without enough memory."""


class OnnxRuntimeCudaBackend(Backend):
    """One ONNX Runtime session for each CUDA lane.

    payload      a serialised ONNX model
    input_size   height and width of the model's images
    dim          length of the model's descriptors
    threads      intra-op threads of a session, None: every core that this process may use
    streams      lanes, see ``Streams``; each lane has its own copy of the weights
    max_batch    the largest batch
    tf32         whether FP32 products may be computed in TF32
    driver       the CUDA calls; None: a ``CudaDriver``

    Raises EngineError if the model cannot be loaded, has other shapes, or there is no GPU; MissingDependency without
    ONNX Runtime.
    """

    streams: Streams

    def __init__(
        self,
        payload: bytes,
        *,
        input_size: tuple[int, int],
        dim: int,
        threads: int | None = None,
        streams: int = LANES,
        max_batch: int = MAX_BATCH,
        tf32: bool = False,
        driver: Driver | None = None,
    ) -> None:
        ort = import_onnxruntime()
        if PROVIDER not in ort.get_available_providers():
            raise EngineError(
                f"this ONNX Runtime has no {PROVIDER}; run `pip uninstall -y onnxruntime`, then "
                f"`{install_line('gpu')}`."
            )
        ort.preload_dlls()  # loads CUDA and cuDNN from NVIDIA's packages, which nothing else would find
        layout = Layout(buckets=bucket_sizes(1, max_batch), image_shape=(*input_size, 3), dim=dim)

        def lane(stream: int) -> OnnxRuntimeLane:
            return OnnxRuntimeLane(ort, _session(ort, payload, threads, stream, tf32), layout)

        self.streams = Streams(driver or CudaDriver(), lane, layout, lanes=streams)
        self.concurrency = self.streams.capacity

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.streams.run(images)

    def close(self) -> None:
        self.streams.close()


class OnnxRuntimeLane:
    """A session that reads and writes device memory on its own stream. A call does not wait for the GPU.

    CUDA graphs cannot capture it: a session may allocate and synchronise inside a run.

    Raises EngineError if the session's model does not have the shapes of ``layout``.
    """

    capturable = False
    device = "cuda"

    def __init__(self, ort: Any, session: Any, layout: Layout) -> None:
        self._session = session
        self._layout = layout
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        found = [session.get_inputs()[0].shape[1:], session.get_outputs()[0].shape[1:]]
        expected = [list(layout.image_shape), [layout.dim]]
        if found != expected:
            raise EngineError(
                f"the ONNX model has images and descriptors of {found}, and the engine's spec says {expected}; "
                "build the engine again."
            )

    def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        binding = self._session.io_binding()
        binding.bind_input(IMAGES, self.device, 0, np.uint8, (batch, *self._layout.image_shape), images)
        binding.bind_output(DESCRIPTORS, self.device, 0, np.float32, (batch, self._layout.dim), descriptors)
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            _check_memory(error, f"a batch of {batch}")
            raise EngineError(
                f"ONNX Runtime refuses a batch of {batch} ({first_line(error)}); use smaller ones."
            ) from error
        return True

    def close(self) -> None:
        self._session = None


def _session(ort: Any, payload: bytes, threads: int | None, stream: int, tf32: bool) -> Any:
    """A session on the CUDA stream ``stream``."""
    options = session_options(ort, threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # ONNX Runtime itself allows TF32; here FP32 means FP32.
    settings = {"device_id": "0", "user_compute_stream": str(stream), "use_tf32": str(int(tf32))}
    try:
        session = ort.InferenceSession(payload, options, providers=[(PROVIDER, settings)])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        _check_memory(error, "the model")
        if CPU_NODES in str(error):
            raise EngineError(
                "ONNX Runtime would compute a part of this model on the CPU, and the engine was to run on CUDA alone; "
                "build an engine with `cgd-deploy build-engine --backend tensorrt`, or load this one with device cpu."
            ) from error
        raise cannot_load(error) from error
    if session.get_providers()[0] != PROVIDER:
        raise EngineError("ONNX Runtime fell back from cuda to the CPU; check the CUDA driver and libraries.")
    return session


def _check_memory(error: Exception, what: str) -> None:
    """Raise OutOfDeviceMemory if ``error`` says that the GPU lacks the memory for ``what``."""
    if any(text in str(error) for text in NO_MEMORY):
        raise OutOfDeviceMemory(
            f"the GPU has too little memory for {what} on ONNX Runtime ({first_line(error)}); {LESS_MEMORY}."
        ) from error
