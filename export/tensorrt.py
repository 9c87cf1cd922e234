"""Typed ONNX -> a plan of TensorRT, or of TensorRT-RTX, which builds plans without a GPU.

Sets no precision but TF32: both libraries obey the types of the graph, and ``proof`` checks the result.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from cgd_deploy.errors import ExportError, InputError
from cgd_deploy.files import replacing
from cgd_deploy.runtime.backends.base import IMAGES
from cgd_deploy.runtime.backends.tensorrt import compute_capabilities, error_log, import_tensorrt
from cgd_deploy.runtime.compatibility import check_tf32
from cgd_deploy.runtime.cuda.driver import Device, find_device
from cgd_deploy.spec import ModelSpec

from .build_options import RTX, BuildOptions
from .int8.quantize import convolutions
from .progress import OnStep, silent
from .proof import Precisions, engine_precisions, network_precisions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A serialized engine and its facts.

    payload   the plan's bytes
    builder   the library's name and version; "hardware_compatible" and "version_compatible" only if the plan is
    gpu       {"name", "compute_capability"}; "8.9,12.0" means either of the two; None if built for no GPU in particular
    network   precision of each convolution in the parsed network
    engine    precision of each convolution that the built engine names
    """

    payload: bytes
    builder: Mapping[str, str]
    gpu: Mapping[str, str] | None = None
    network: Precisions = field(default_factory=dict)
    engine: Precisions = field(default_factory=dict)


def plan_from_onnx(
    model: onnx.ModelProto,
    spec: ModelSpec,
    backend: str,
    options: BuildOptions,
    on_step: OnStep = silent,
    tf32: bool = False,
) -> Plan:
    """Build ``model`` for "tensorrt" or "tensorrt-rtx"; ``tf32`` lets the library compute FP32 products in TF32.

    Ctrl-C, or an exception that ``on_step`` raises, stops the build at its next step and reaches the caller.
    Raises MissingDependency without the library, EngineError without the GPU that TensorRT builds on or for TF32 on
    a GPU that has none, InputError for options that do not fit, ExportError for a model that cannot be parsed or built.
    """
    options.check(backend)
    trt = import_tensorrt(backend)
    device = None if backend == RTX else find_device()  # before any object of TensorRT's, which crash without a GPU
    if tf32:
        _check_tf32(backend, device, options)
    log = error_log(trt)
    builder = trt.Builder(log)
    config = builder.create_builder_config()
    try:
        capabilities = _target(trt, config, options)
    except AttributeError as error:
        raise InputError(f"{backend} {trt.__version__} lacks an option that was asked for: {error}.") from error
    network, parser = _parsed(trt, builder, log, model, backend)
    _configure(trt, builder, config, spec, options, tf32)
    asked = network_precisions(trt, network, {node.name for node in convolutions(model)})
    monitor = _monitor(trt, on_step)
    config.progress_monitor = monitor
    memory = _interruptible(lambda: builder.build_serialized_network(network, config), monitor.stop)
    del parser  # it owns the weights, so it must live until here
    if monitor.error:
        raise monitor.error
    if memory is None:
        reason = _first_line(log.errors) or "it gives no reason"
        raise ExportError(f"{backend} cannot build the model ({reason}); try a smaller batch or workspace.")
    payload = bytes(memory)
    if options.timing_cache:
        with replacing(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    # A plan of RTX lists no kernels: RTX chooses them when it loads the plan.
    layers = [] if backend == RTX else _inspect(trt, log, payload)
    return Plan(
        payload=payload,
        builder=_builder_facts(trt, backend, options, capabilities),
        gpu=_gpu_facts(device, capabilities),
        network=asked,
        engine=engine_precisions(layers, set(asked)),
    )


def _parsed(trt: Any, builder: Any, log: Any, model: onnx.ModelProto, backend: str) -> tuple[Any, Any]:
    """The network of ``model``, and the parser that owns its weights."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise ExportError(_parse_errors(parser, backend, log.errors))
    return network, parser


def _configure(trt: Any, builder: Any, config: Any, spec: ModelSpec, options: BuildOptions, tf32: bool) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)  # set by default; here FP32 means FP32
    profile = builder.create_optimization_profile()
    batches = (options.min_batch, options.opt_batch, options.max_batch)
    profile.set_shape(IMAGES, *((batch, *spec.input_size, 3) for batch in batches))
    config.add_optimization_profile(profile)
    if options.timing_cache:
        _read_timing_cache(config, options.timing_cache)


def _builder_facts(trt: Any, backend: str, options: BuildOptions, capabilities: str) -> dict[str, str]:
    facts = {"name": backend, "version": str(trt.__version__)}
    if options.hardware_compatible or (backend == RTX and not capabilities):
        facts["hardware_compatible"] = "Ampere and later"
    if options.version_compatible:
        facts["version_compatible"] = "later releases of the same major version"
    return facts


def _gpu_facts(device: Device | None, capabilities: str) -> dict[str, str] | None:
    if device:
        return {"name": device.name, "compute_capability": device.compute_capability}
    return {"compute_capability": capabilities} if capabilities else None


def _check_tf32(backend: str, device: Device | None, options: BuildOptions) -> None:
    """Raise EngineError if this machine's GPU, or a GPU that was asked for, has no TF32."""
    if device:
        check_tf32("the engine", backend, device.compute_capability, f"this machine's {device.name}")
    for capability in options.compute_capabilities:
        check_tf32("the engine", backend, capability, "a GPU that was asked for")


def _target(trt: Any, config: Any, options: BuildOptions) -> str:
    """Tell ``config`` which GPUs and releases to build for; returns the compute capabilities, "8.9,12.0"."""
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if not options.compute_capabilities:
        return ""
    known = compute_capabilities(trt)
    wanted = list(dict.fromkeys(options.compute_capabilities))
    if unknown := [capability for capability in wanted if capability not in known]:
        raise InputError(
            f"{RTX} {trt.__version__} builds for no compute capability {', '.join(unknown)}; "
            f"expected some of {', '.join(known)}."
        )
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        config.set_compute_capability(known[capability], index)
    return ",".join(wanted)


def _read_timing_cache(config: Any, path: Path) -> None:
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(f"the timing cache {path} was made with another GPU or TensorRT; pass a new file.")


def _interruptible(build: Callable[[], Any], stop: threading.Event) -> Any:
    """Run ``build`` in a thread, so that Ctrl-C sets ``stop``: Python handles it in the main thread alone."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(build)
        try:
            while not wait([future], timeout=0.1).done:
                pass
        except BaseException:
            stop.set()
            raise
        return future.result()


def _inspect(trt: Any, log: Any, payload: bytes) -> list[dict[str, Any]]:
    """The layers of the built engine, as TensorRT's engine inspector lists them."""
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(payload)
    if engine is None:
        raise ExportError(f"TensorRT refuses the plan that it just built ({_first_line(log.errors)}); build it again.")
    inspector = engine.create_engine_inspector()
    layers: list[dict[str, Any]] = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))[
        "Layers"
    ]
    return [layer for layer in layers if isinstance(layer, dict)]  # a layer without details is a bare name


def _parse_errors(parser: Any, backend: str, logged: Sequence[str]) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"{error.node_name()} ({error.node_operator()}): {_first_line([error.desc()])}" for error in errors]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    reasons = "; ".join(told[:3]) or _first_line(logged) or "it gives no reason"
    return f"{backend} cannot parse the model: {reasons}{more}; export it again with this release."


def _first_line(texts: Sequence[str]) -> str:
    """The first error, without its prefixes and without paths of NVIDIA's source."""
    line = next((line for text in texts for line in text.splitlines() if "Error" in line), *list(texts)[:1] or [""])
    line = re.sub(r"\(?In \w+ at /\S+\)?", "", re.sub(r"^.*Error Code \d+: ([\w ]+\()?", "", line))
    return line.strip(" .)")[:200]


def _monitor(trt: Any, on_step: OnStep) -> Any:
    """A progress monitor that ends the build once ``stop`` is set or ``on_step`` raises ``error``."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.stop = threading.Event()
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                on_step(phase_name, step + 1, self._steps[phase_name])
            except BaseException as error:  # passing through C++, it would end the process
                self.error = error
                self.stop.set()
            return not self.stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
