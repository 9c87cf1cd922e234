"""ONNX models on OpenVINO, the fastest of the backends on x86 CPUs in FP32, BF16 and INT8."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, MissingDependency, install_line
from ...hardware.cpu import available_threads
from .base import Backend

TELEMETRY = "openvino_telemetry"
PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
"""OpenVINO's names of the operations that multiply by weights."""


def import_openvino() -> Any:
    """The openvino module, loaded without telemetry; raises MissingDependency without it.

    `import openvino` sends an event: it starts a process, opens a socket and writes to ~/intel. OpenVINO sends nothing
    on machines without the package openvino_telemetry, so this function hides that package during the import.
    """
    loaded = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingDependency(f"OpenVINO is not installed; run `{install_line('cpu', 'openvino')}`.") from error
    finally:
        del sys.modules[TELEMETRY]
        if loaded:
            sys.modules[TELEMETRY] = loaded
    return openvino


def _new_core(openvino: Any) -> Any:
    """A Core that has loaded the CPU plugin in a thread of its own.

    The plugin gives the thread that loads it a signal stack, and frees that stack when another thread closes the last
    model. A signal in the first thread would then kill the process.
    """

    def load() -> Any:
        core = openvino.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")  # the first question loads the plugin
        return core

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load).result()


class OpenVinoBackend(Backend):
    """One model compiled for the CPU; as many infer requests as threads call at once.

    payload   a serialised ONNX model
    device    "cpu"
    threads   by default every core this process may use
    streams   runs at the same time, which share the threads
    bf16      whether floats are BF16. OpenVINO keeps norms, and all behind the last fully connected layer, in FP32

    Raises EngineError if the model cannot be compiled, MissingDependency without OpenVINO.
    """

    def __init__(self, payload: bytes, *, threads: int | None = None, streams: int = 1, bf16: bool = False) -> None:
        openvino = import_openvino()
        core = _new_core(openvino)
        settings = {
            "INFERENCE_NUM_THREADS": threads or available_threads(),
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # OpenVINO alone would choose what the CPU has
        }
        try:
            self._compiled = core.compile_model(core.read_model(payload), "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise EngineError(f"OpenVINO cannot load the model ({reason}); build the engine again.") from error
        if bf16 and self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string() != "bf16":
            raise EngineError(
                "OpenVINO would compute this BF16 model in FP32 here; build an engine for this CPU with `cgd-deploy "
                "build-engine --int8` or `--fp32`."
            )
        self.concurrency = streams
        self._tensor = openvino.Tensor
        self._row = [size.get_length() for size in list(self._compiled.output(0).partial_shape)[1:]]
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        descriptors = np.empty((len(images), *self._row), np.float32)
        self.run_into(images, descriptors)
        return descriptors

    def run_into(self, images: NDArray[np.uint8], descriptors: NDArray[np.float32]) -> None:
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            request.set_output_tensor(self._tensor(descriptors, shared_memory=True))
            request.infer({0: images}, share_inputs=True, share_outputs=True)
        finally:
            self._idle.put(request)

    def close(self) -> None:
        self._idle = SimpleQueue()
        self._compiled = None

    def kernels(self) -> dict[str, str]:
        """Convolution or product of the ONNX model -> kernel that computes it, for example brgconv_avx512_I8."""
        found: dict[str, str] = {}
        for operation in self._compiled.get_runtime_model().get_ops():
            facts = {name: value.astype(str) for name, value in operation.get_rt_info().items()}
            if facts["layerType"] in PRODUCTS:
                nodes = [name.split("/")[0] for name in facts["originalLayersNames"].split(",")]
                found |= dict.fromkeys(nodes, facts["primitiveType"])
        return found
