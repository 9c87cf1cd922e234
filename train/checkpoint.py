"""Checkpoint files: the spec and weights of a model, and its lists of pictures, as plain tensors and dicts."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import CheckpointError, InputError, in_one_line
from cgd_deploy.files import replacing
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.spec import ModelSpec

from .model import CGD
from .weights import load_tensors

SCHEMA = 2
RECORDED_FOR_CALIBRATION = 512
"""How many training pictures a checkpoint records for INT8 calibration."""


@dataclass
class Checkpoint:
    """The content of a checkpoint file.

    model        the CGD model; its spec holds the space_id of its weights
    calibration  training pictures for INT8 calibration, or None
    evaluation   the held-out test pictures and their protocol, or None
    trainer      state that a resumed run needs, see ``run``; empty in best.pt
    origin       source of imported weights and the spec that the user stated; empty for trained weights
    """

    model: CGD
    calibration: ImageList | None = None
    evaluation: Evaluation | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> Path:
    """Write ``path`` atomically; the model's spec gets the learned p and the space_id of the weights."""
    model = checkpoint.model
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    spec = replace(model.spec, gem_p=_learned_p(model))
    model.spec = replace(spec, space_id=space_id(spec, state))
    data = {
        "cgd_checkpoint": SCHEMA,
        "spec": model.spec.to_dict(),
        "classes": model.auxiliary[1].out_features if model.auxiliary is not None else 0,
        "learn_p": any(isinstance(pool.p, Tensor) for pool in model.pools),
        "state_dict": state,
        "trainer": checkpoint.trainer,
        "origin": checkpoint.origin,
        "calibration": checkpoint.calibration.to_dict() if checkpoint.calibration else None,
        "evaluation": checkpoint.evaluation.to_dict() if checkpoint.evaluation else None,
    }
    return save_tensors(data, path)


def save_tensors(data: dict[str, Any], path: str | Path) -> Path:
    """Write plain tensors and containers atomically, for ``load_tensors``; raises InputError where that fails.

    Serializes in memory first: on a full disk, torch raises only a RuntimeError about file positions.
    """
    made = io.BytesIO()
    torch.save(data, made)
    with replacing(path) as temporary:
        temporary.write_bytes(made.getbuffer())
    return Path(path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; the model is in eval mode on the CPU.

    Raises CheckpointError if the file is no checkpoint or its weights do not fit its spec, SpecError if the spec is
    unknown.
    """
    data = load_tensors(path)
    if "spec" not in data or "state_dict" not in data:
        raise CheckpointError(f"{path} has no model spec; expected a checkpoint written by cgd-deploy train.")
    if data.get("cgd_checkpoint") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {data.get('cgd_checkpoint')}, this release reads {SCHEMA}; "
            "use the cgd-deploy that wrote it."
        )
    try:
        return _checkpoint(data, path)
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise CheckpointError(
            f"{path} is a damaged checkpoint ({in_one_line(error)}); train or import it again."
        ) from error


def _checkpoint(data: dict[str, Any], path: str | Path) -> Checkpoint:
    spec, state = ModelSpec.from_dict(data["spec"]), data["state_dict"]
    head = state.get("auxiliary.1.weight")
    if data["classes"] != (0 if head is None else len(head)):  # before building a head of that size
        raise ValueError(f"{data['classes']!r:.60} classes, which its weights do not have")
    model = CGD(spec, classes=data["classes"], learn_p=data["learn_p"], centred="heads.0.mean" in state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"the weights in {path} do not fit its spec ({reason[:200]}); train or import it again."
        ) from error
    if (found := space_id(spec, state)) != spec.space_id:
        raise CheckpointError(
            f"the weights in {path} belong to space {found}, its spec says {spec.space_id}; the file was edited."
        )
    return Checkpoint(
        model.eval(),
        calibration=ImageList.from_dict(data["calibration"]) if data["calibration"] else None,
        evaluation=Evaluation.from_dict(data["evaluation"]) if data["evaluation"] else None,
        trainer=data["trainer"],
        origin=data["origin"],
    )


def space_id(spec: ModelSpec, state: dict[str, Tensor]) -> str:
    """16 hex digits: the hash of the spec and of all weights but the auxiliary head, which changes no descriptor."""
    digest = hashlib.sha256(replace(spec, space_id="").to_json().encode())
    for name in sorted(state):
        if not name.startswith("auxiliary."):
            digest.update(name.encode())
            digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _learned_p(model: CGD) -> float:
    learned = [pool.p.item() for pool in model.pools if isinstance(pool.p, Tensor)]
    return learned[0] if learned else model.spec.gem_p
