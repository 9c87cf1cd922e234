"""Descriptor distillation: fine-tune an INT8 model so that it gives the descriptors of its FP32 model.

Needs pictures without labels. Knows no runtime; ``quantized`` writes the trained model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from cgd_deploy.errors import CheckpointError, ExportError, InputError
from cgd_deploy.files import sha256_bytes
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.descriptors import Descriptors, cosines
from cgd_deploy.spec import ModelSpec
from cgd_train.checkpoint import save_tensors
from cgd_train.processes import share_threads
from cgd_train.weights import load_tensors

from ..metadata import get_metadata
from ..progress import OnStep, silent
from .calibrate import Ranges
from .graph import Graph
from .quantize import CONVOLUTIONS, SMALLEST_SCALE, Rounding, backbone, convolutions, int8_edges

STEPS = 120
"""About ten minutes on two cores for ResNet-50 at 224 pixels."""
LR = 0.005
"""Learning rate of weights at the first step, in INT8 codes."""
SCALE_LR = 0.001
"""Learning rate of an activation's scale at the first step, relative to the scale."""
SAVE_EVERY = 10
MIN_COSINE = 0.9999

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long distillation trains.

    steps        batches to train on
    batch_size   pictures in a batch
    seed         of the order of the pictures
    """

    steps: int = STEPS
    batch_size: int = 16
    seed: int = 0

    @property
    def pictures(self) -> int:
        """Pictures in all batches together."""
        return self.steps * self.batch_size


def distilled(
    model: onnx.ModelProto,
    ranges: Ranges,
    images: ImageList,
    rounding: Rounding,
    *,
    schedule: Schedule | None = None,
    state: Path | None = None,
    on_step: OnStep = silent,
) -> tuple[onnx.ModelProto, Ranges]:
    """Weights and ranges whose INT8 descriptors are closer to the FP32 descriptors of ``model``.

    model, ranges   an FP32 model and its ranges, see ``Activations.ranges``
    images          pictures without labels; at most ``schedule.pictures`` of them are used, held decoded in memory
    state           file from which an interrupted run goes on; written every ten steps, deleted at the end
    on_step         called with "Describing" or "Distilling", the steps done and the steps in all

    Only the backbone's weights and biases change, and the ranges of the activations that ``rounding`` rounds.
    ``quantized`` writes exactly the trained model if it gets both and the same ``rounding``. An interrupted run ends
    with the numbers of an uninterrupted one.
    Raises ExportError for a model that torch cannot run as ONNX Runtime does, InputError for pictures that cannot be
    used or the ``state`` of another distillation.
    """
    schedule = schedule or Schedule()
    steps, batch_size = schedule.steps, schedule.batch_size
    if min(len(images), steps, batch_size) < 1:
        raise InputError(
            f"{len(images)} pictures and {steps} steps of {batch_size} leave nothing to distill on; "
            "pass at least one of each."
        )
    share_threads()
    pixels, targets = _described(model, images.sample(schedule.pictures), batch_size, on_step)
    student = FakeQuantized(model, ranges, rounding)
    student.check(pixels[:batch_size], targets[:batch_size])
    run = _Run(student, steps)
    identity = _identity(model, ranges, pixels, rounding, schedule)
    if state and state.exists():
        run.load(state, identity)
    order = _order(len(pixels), schedule.pictures, schedule.seed)
    while run.step < steps:
        chosen = order[run.step * batch_size :][:batch_size]
        run.advance(torch.from_numpy(pixels[chosen]), torch.from_numpy(targets[chosen]))
        if state and run.step % SAVE_EVERY == 0:
            run.save(state, identity)
        on_step("Distilling", run.step, steps)
    if state:
        state.unlink(missing_ok=True)
    return student.written(model), {**ranges, **student.ranges()}


def _identity(model: onnx.ModelProto, ranges: Ranges, pixels: Pixels, rounding: Rounding, schedule: Schedule) -> str:
    """SHA-256 of everything that decides the result."""
    rounded = sorted((name, f"{value:.4g}") for name, value in ranges.items())  # a new measurement differs by less
    kept = sorted(rounding.keep_float)
    settings = (rounded, rounding.layout, kept, rounding.weight_range, schedule.steps, schedule.batch_size)
    parts = (model.SerializeToString(), pixels.tobytes(), repr((*settings, schedule.seed)).encode())
    return sha256_bytes("".join(map(sha256_bytes, parts)).encode())


class FakeQuantize(torch.autograd.Function):
    """Activations rounded to INT8 codes and back: scale * clip(round(x / scale), low, high), ties to even.

    The gradient follows LSQ (Esser et al. 2020, section 2.1). For x it passes straight through where x is not clipped.
    For the scale it is round(x / scale) - x / scale, or the limit where x is clipped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        rounded = x.div(scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, scale, rounded)
        ctx.limits = low, high
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale, rounded = ctx.saved_tensors
        low, high = ctx.limits
        passed = gradient * ((x >= low * scale) & (x <= high * scale))
        return passed, ((gradient * rounded).sum() - (passed * x).sum()) / scale, None, None


def rounded_weight(weight: Tensor, axis: int, rounding: Rounding) -> Tensor:
    """The weight as ``quantized`` rounds it; the gradient passes straight through, because no code is clipped.

    axis   of the output channels, each of which has its own scale
    """
    weight_range = rounding.weight_range
    with torch.no_grad():
        scale = (_largest(weight, axis) / weight_range).clamp_min(SMALLEST_SCALE)
        if rounding.layout.weight_scales is np.float16:
            scale = scale.half().float()
        error = (weight / scale).round().clamp(-weight_range, weight_range) * scale - weight
    return weight + error


def distance(found: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine over two sets of unit descriptors [N, D]."""
    return 1 - (found * target).sum(dim=1).mean()


class FakeQuantized:
    """A model that rounds where ``quantized`` will round, and its trained tensors.

    offsets      change of each weight and bias from the first convolution on, in INT8 codes; for a tensor without
                 codes, in the same part of its largest magnitude
    log_scales   natural logarithm of each range's scale
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Ranges,
        rounding: Rounding,
    ) -> None:
        self._graph = Graph(model)
        self._rounding, keep_float = rounding, rounding.keep_float
        self._edges = {(edge.node, edge.position): edge for edge in int8_edges(model, rounding.layout, keep_float)}
        axes = {node.input[1]: CONVOLUTIONS[node.op_type] for node in convolutions(model)}
        int8 = [node for node in convolutions(model) if node.name not in keep_float]
        self._rounded = {node.input[1]: axes[node.input[1]] for node in int8}
        self._units = {
            name: _largest(self._graph.initializers[name], axes.get(name)) / rounding.weight_range
            for name in _trained(model, self._graph.initializers)
        }
        self.offsets = {name: torch.zeros_like(self._graph.initializers[name]).requires_grad_() for name in self._units}
        self.log_scales = {
            name: torch.tensor(math.log(max(ranges[name] / high, SMALLEST_SCALE))).requires_grad_()
            for name, high in self._highest().items()
        }

    def describe(self, pixels: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> the descriptors float32 [N, D] that the INT8 model will give."""
        tensors = self._graph.initializers | self._weights()
        for name, axis in self._rounded.items():
            tensors[name] = rounded_weight(tensors[name], axis, self._rounding)
        made: dict[str, Tensor] = {}  # many nodes may read one tensor

        def read(node: onnx.NodeProto, position: int, x: Tensor) -> Tensor:
            edge = self._edges.get((node.name, position))
            if edge is None:
                return x
            if edge.tensor not in made:
                made[edge.tensor] = FakeQuantize.apply(x, self._scale(edge.ranged), edge.codes.low, edge.codes.high)
            return made[edge.tensor]

        return self._graph.run(pixels, tensors, read)

    def check(self, pixels: Pixels, targets: Descriptors) -> None:
        """Raise ExportError unless torch, rounding nothing, gives the descriptors float32 [N, D] of ONNX Runtime."""
        with torch.inference_mode():
            found = self._graph.run(torch.from_numpy(pixels), self._graph.initializers).numpy()
        closest = cosines(found, targets).min()
        if not closest >= MIN_COSINE:
            raise ExportError(
                f"torch runs this model differently from ONNX Runtime (cosine {closest:.6f} < {MIN_COSINE}); "
                "export it again with cgd-deploy."
            )

    def written(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the FP32 ``model`` with the trained weights."""
        result = onnx.ModelProto()
        result.CopyFrom(model)
        weights = {name: weight.detach().numpy() for name, weight in self._weights().items()}
        for tensor in result.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
        return result

    def ranges(self) -> Ranges:
        """Ranges from which ``quantized`` computes exactly the trained scales."""
        return {name: high * self._scale(name).item() for name, high in self._highest().items()}

    def _highest(self) -> dict[str, int]:
        """The highest code of each range."""
        return {edge.ranged: edge.codes.high for edge in self._edges.values()}

    def _weights(self) -> dict[str, Tensor]:
        return {name: self._graph.initializers[name] + unit * self.offsets[name] for name, unit in self._units.items()}

    def _scale(self, ranged: str) -> Tensor:
        scale = self.log_scales[ranged].exp()
        half = scale.clamp_min(SMALLEST_SCALE).half().float()  # as ``quantized`` rounds it
        return scale + (half - scale).detach()


class _Run:
    """The optimizer and its step out of ``steps``; a file can hold them for a later process."""

    def __init__(self, student: FakeQuantized, steps: int) -> None:
        self._student = student
        self._steps = steps
        self.step = 0
        self._groups = {"offsets": student.offsets, "log_scales": student.log_scales}
        self._adam = torch.optim.Adam(
            [
                {"params": list(student.offsets.values()), "largest": LR},
                {"params": list(student.log_scales.values()), "largest": SCALE_LR},
            ]
        )

    def advance(self, pixels: Tensor, targets: Tensor) -> None:
        """One step of Adam, whose learning rate falls to zero along half a cosine."""
        for group in self._adam.param_groups:
            group["lr"] = group["largest"] * (1 + math.cos(math.pi * self.step / self._steps)) / 2
        loss = distance(self._student.describe(pixels), targets)
        if not torch.isfinite(loss):
            raise ExportError(
                f"distillation gives descriptors that are not numbers in step {self.step + 1}; build without --distill."
            )
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        self.step += 1

    def save(self, path: Path, identity: str) -> None:
        trained = {key: {name: x.detach() for name, x in group.items()} for key, group in self._groups.items()}
        save_tensors({"of": identity, "step": self.step, "adam": self._adam.state_dict(), **trained}, path)

    def load(self, path: Path, identity: str) -> None:
        try:
            saved = load_tensors(path)
        except CheckpointError:
            saved = {}
        if saved.get("of") != identity:
            raise InputError(
                f"{path} holds an unfinished distillation of another model, other pictures or other settings; "
                "repeat the command that began it, or delete the file."
            )
        with torch.no_grad():
            for key, group in self._groups.items():
                for name, x in group.items():
                    x.copy_(saved[key][name])
        self._adam.load_state_dict(saved["adam"])
        self.step = saved["step"]


def _described(
    model: onnx.ModelProto, images: ImageList, batch_size: int, on_step: OnStep
) -> tuple[Pixels, Descriptors]:
    """Every picture decoded, uint8 [N, H, W, 3], and its descriptor by ONNX Runtime, float32 [N, D]."""
    spec: ModelSpec = get_metadata(model).spec
    pixels, targets, done = [], [], 0
    with OnnxRuntimeBackend(model.SerializeToString()) as teacher:
        for _, pictures in batches(images, spec, batch_size):
            pixels.append(pictures)
            targets.append(teacher.run(pictures))
            done += len(pictures)
            on_step("Describing", done, len(images))
    return np.concatenate(pixels), np.concatenate(targets)


def _order(pictures: int, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` picture numbers: every picture once in random order, then all in another order, and so on."""
    rounds = range(math.ceil(count / pictures))
    return np.concatenate([np.random.default_rng((seed, number)).permutation(pictures) for number in rounds])[:count]


def _trained(model: onnx.ModelProto, initializers: dict[str, Tensor]) -> list[str]:
    """Names of the backbone's float tensors from the first convolution on, without the pixels' mean and deviation."""
    behind: set[str] = set()
    names: dict[str, None] = {}
    for node in backbone(model):
        if node.op_type in CONVOLUTIONS or behind.intersection(node.input):
            behind.update(node.output)
            names.update(
                (name, None)
                for name in node.input
                if name in initializers and initializers[name].is_floating_point() and initializers[name].ndim
            )
    inside = {name for node in backbone(model) for name in node.output}
    head = {name for node in model.graph.node if inside.isdisjoint(node.output) for name in node.input}
    return [name for name in names if name not in head]


def _largest(tensor: Tensor, channels: int | None) -> Tensor:
    """Largest magnitude of each slice along axis ``channels``, or of the whole tensor; keeps the number of axes."""
    return tensor.abs().amax([axis for axis in range(tensor.ndim) if axis != channels], keepdim=True)
