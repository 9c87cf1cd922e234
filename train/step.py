"""One step of the optimizer on one batch, in parts, on several processes, and in bf16 or fp16 if asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from cgd_deploy.errors import InputError

from .config import TrainConfig
from .data import Pixels
from .losses import auxiliary_classification, ranking_loss
from .model import CGD, DeployModel
from .processes import Processes

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Losses:
    """The losses of a step: total = ranking_weight * ranking + auxiliary_weight * auxiliary.

    ranking_share   ranking, divided by its value if all descriptors were equal (for batch-hard, the margin); None if
                    that value is 0
    gradient_norm   Euclidean norm of the gradient of all trained weights; NaN if there was no step
    """

    total: float
    ranking: float
    auxiliary: float | None
    ranking_share: float | None
    gradient_norm: float = math.nan


class Stepper:
    """Trains ``model`` in place, batch by batch.

    The losses see the descriptors of the whole batch, gathered from all processes. With ``config.accumulate``, the
    batch passes through the backbone in parts, twice: first without gradients, then part by part with the gradient of
    each pooled vector (Gao et al. 2021, section 3.2). A BatchNorm that is not frozen sees one part at a time, each part
    once. With ``trains_backbone`` false, only the layers behind the backbone train.
    """

    def __init__(self, model: CGD, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        self.deploy = DeployModel(model)
        self.model = model
        self.device = self.deploy.mean.device
        self.ranking = ranking_loss(config.loss, config.margin)
        batch = torch.arange(config.classes_per_batch).repeat_interleave(config.pictures_per_class)
        self.collapsed = self.ranking(torch.ones(config.batch, 1), batch).item()
        backbone = [p for p in model.backbone.parameters() if p.requires_grad]
        described = [*model.pools.parameters(), *model.heads.parameters()]
        classifier = [*model.auxiliary.parameters()] if model.auxiliary is not None else []
        self.parameters = backbone + described + classifier
        groups = [(backbone, 1.0), (described, config.head_lr), (classifier, config.auxiliary_lr)]
        self.optimizer = torch.optim.Adam(
            [{"params": params, "times": times} for params, times in groups if params], lr=config.lr, fused=True
        )
        self.trains_backbone = True
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of ``state_dict``. Raises InputError for the state of a release with other groups of weights."""
        if len(state["optimizer"]["param_groups"]) != len(self.optimizer.param_groups):
            raise InputError(
                "this run was started by an older release, whose optimizer grouped the weights otherwise; finish it "
                "with that release, or start a new run in another -o folder."
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["times"]

    def step(self, pixels: Pixels, targets: Tensor, seed: int) -> Losses:
        """One step on a batch.

        pixels    uint8 [n, H, W, 3], this process's part of the batch
        targets   int64 [N], the classes of the whole batch
        seed      of dropout and other random layers

        Leaves the model unchanged if the loss is not finite.
        """
        parts = np.array_split(pixels, min(self.config.accumulate, len(pixels)))
        if len(parts) == 1:
            pooled = self._pooled(pixels, seed)
        else:
            with torch.no_grad(), statistics_kept(self.model):
                pooled = torch.cat([self._pooled(part, seed + i) for i, part in enumerate(parts)])
            pooled.requires_grad_()
        total, losses = self._losses(self.processes.gather(pooled), targets.to(self.device))
        if not math.isfinite(losses.total):
            return losses
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        if len(parts) > 1:
            assert pooled.grad is not None
            for i, gradient in enumerate(torch.tensor_split(pooled.grad, len(parts))):
                again = self._pooled(parts[i], seed + i)
                if again.requires_grad:
                    again.backward(gradient)
        self.processes.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = _norm([p.grad for p in self.parameters if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return replace(losses, gradient_norm=norm)

    def pooled(self, pixels: Pixels) -> Tensor:
        """uint8 [N, H, W, 3] -> pooled vectors float32 [N, branches, C], in the training's arithmetic."""
        images = self.deploy.normalized(torch.from_numpy(pixels).to(self.device))
        autocast = torch.autocast(self.device.type, DTYPES[self.config.amp], enabled=self.config.amp != "off")
        with autocast, torch.set_grad_enabled(self.trains_backbone and torch.is_grad_enabled()):
            features = self.model.backbone(images)
        return torch.stack(self.model.pooled(features.float()), dim=1)

    def descriptors(self, pixels: Pixels) -> Tensor:
        """uint8 [N, H, W, 3] -> unit descriptors float32 [N, dim], in the training's arithmetic."""
        return self.model.described(list(self.pooled(pixels).unbind(1)))[0]

    def _pooled(self, pixels: Pixels, seed: int) -> Tensor:
        """``pooled``, with the same dropout for the same seed."""
        torch.manual_seed(seed)
        return self.pooled(pixels)

    def _losses(self, pooled: Tensor, targets: Tensor) -> tuple[Tensor, Losses]:
        config = self.config
        descriptors, logits = self.model.described(list(pooled.unbind(1)))
        ranking = self.ranking(descriptors, targets)
        total, auxiliary = config.ranking_weight * ranking, None
        if logits is not None:
            classification = auxiliary_classification(logits, targets, config.temperature, config.smoothing)
            total, auxiliary = total + config.auxiliary_weight * classification, classification.item()
        share = ranking.item() / self.collapsed if self.collapsed else None
        return total, Losses(total.item(), ranking.item(), auxiliary, share)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Until the block ends, no BatchNorm of ``model`` changes its running statistics."""
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    try:
        for module in momenta:
            module.momentum = 0.0
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum


def _norm(gradients: list[Tensor]) -> float:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item()
