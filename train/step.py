"""One step of the optimizer on one batch, in parts, on several processes, and in bf16 or fp16 if asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .config import TrainConfig
from .data import Pixels
from .losses import auxiliary_classification, ranking_loss
from .model import CGD, DeployModel
from .processes import Processes

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Losses:
    """The losses of a step: total = ranking_weight * ranking + auxiliary_weight * auxiliary."""

    total: float
    ranking: float
    auxiliary: float | None


class Stepper:
    """Trains ``model`` in place, batch by batch.

    The losses see the descriptors of the whole batch, gathered from all processes. With ``config.accumulate``, the
    batch passes through the backbone in parts, twice: first without gradients, then part by part with the gradient of
    each pooled vector (Gao et al. 2021, section 3.2). A BatchNorm that is not frozen sees one part at a time. With
    ``trains_backbone`` false, only the layers behind the backbone train.
    """

    def __init__(self, model: CGD, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        self.deploy = DeployModel(model)
        self.model = model
        self.device = self.deploy.mean.device
        self.ranking = ranking_loss(config.loss, config.margin)
        backbone = [p for p in model.backbone.parameters() if p.requires_grad]
        new = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
        self.parameters = backbone + new
        self.optimizer = torch.optim.Adam(
            [{"params": backbone, "times": 1.0}, {"params": new, "times": config.head_lr}], lr=config.lr, fused=True
        )
        self.trains_backbone = True
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
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
            with torch.no_grad():
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
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses

    def _pooled(self, pixels: Pixels, seed: int) -> Tensor:
        """uint8 [n, H, W, 3] -> every branch's pooled vector, float32 [n, branches, C]; the same for the same seed."""
        torch.manual_seed(seed)
        images = self.deploy.normalized(torch.from_numpy(pixels).to(self.device))
        autocast = torch.autocast(self.device.type, DTYPES[self.config.amp], enabled=self.config.amp != "off")
        with autocast, torch.set_grad_enabled(self.trains_backbone and torch.is_grad_enabled()):
            features = self.model.backbone(images)
        return torch.stack(self.model.pooled(features.float()), dim=1)

    def _losses(self, pooled: Tensor, targets: Tensor) -> tuple[Tensor, Losses]:
        config = self.config
        descriptors, logits = self.model.described(list(pooled.unbind(1)))
        ranking = self.ranking(descriptors, targets)
        total = config.ranking_weight * ranking
        if logits is None:
            return total, Losses(total.item(), ranking.item(), None)
        auxiliary = auxiliary_classification(logits, targets, config.temperature, config.smoothing)
        total = total + config.auxiliary_weight * auxiliary
        return total, Losses(total.item(), ranking.item(), auxiliary.item())
