"""Checkpoints out of state_dicts that other code wrote.

What weights tell is checked, what they cannot tell is the caller's word and comes back as warnings. Knows keys and
shapes; runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from math import isclose
from pathlib import Path

import torch
from torch import Tensor

from cgd_deploy.datasets import read_dataset
from cgd_deploy.errors import CheckpointError, MissingDependency
from cgd_deploy.files import sha256_file
from cgd_deploy.spec import ModelSpec

from .backbone import BACKBONES, HEAD, build_backbone, load_tensors
from .checkpoint import CALIBRATION_PICTURES, Checkpoint, save_checkpoint
from .model import CGD

SEQUENTIAL = "cgd-sequential"
"""``features.N`` are the ResNet's children in order, ``main_modules.N.0`` the descriptors' linear layers."""
OWN = "cgd-deploy"
"""Our own names, without the checkpoint around them."""
BACKBONE = "backbone"
"""A classifier or backbone under torchvision's names."""

BACKBONE_PREFIX = {SEQUENTIAL: "features.", OWN: "backbone.", BACKBONE: ""}
PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7, "features": 0}
"""Of a network's children that have weights; 2 and 3 are ReLU and pooling, other families' one child is "features"."""
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
COUNTERS = ("total_ops", "total_params")  # thop leaves them in every module that it has profiled
OPTIONAL = "num_batches_tracked"  # absent before torch 0.4.1


@dataclass(frozen=True)
class Imported:
    """A foreign model as a checkpoint.

    checkpoint  the model in eval mode on the CPU, float32; its origin names the file
    layout      "cgd-sequential", "cgd-deploy" or "backbone"
    warnings    a sentence each on what the weights could not tell
    """

    checkpoint: Checkpoint
    layout: str
    warnings: tuple[str, ...]


def import_weights(path: str | Path, spec: ModelSpec, *, seed: int = 0) -> Imported:
    """Read the state_dict in ``path`` as the model that ``spec`` states; ``seed`` is of heads that the file lacks.

    Raises CheckpointError where the file contradicts ``spec``, holds anything else or is a checkpoint already,
    SpecError for an unknown backbone.
    """
    path = Path(path)
    state = _read(path)
    layout = _layout(state)
    if layout == BACKBONE:
        state = {name: tensor for name, tensor in state.items() if name.split(".")[0] not in HEAD}
    _check_backbone(state, layout, spec, path)
    learned: set[int] = set()
    if layout != BACKBONE:
        _check_heads(state, layout, spec, path)
        learned = _take_exponents(state, layout, spec, path)
    model = _model(state, layout, spec, seed, path)
    origin = {
        "imported_from": path.name,
        "sha256": sha256_file(path),
        "layout": layout,
        "stated": spec.to_json(),
    }
    return Imported(Checkpoint(model, origin=origin), layout, _warnings(layout, spec, seed, learned))


def import_checkpoint(
    path: str | Path, spec: ModelSpec, out: str | Path, *, data: str | Path | None = None
) -> tuple[str, ...]:
    """``import_weights``, saved as the checkpoint ``out``; returns the warnings.

    data   a data set whose training pictures the checkpoint names for calibration, and its test pictures for bench

    Raises what ``import_weights`` and ``read_dataset`` do.
    """
    imported = import_weights(path, spec)
    notes: tuple[str, ...] = ()
    if data is not None:
        dataset = read_dataset(data)
        imported.checkpoint.calibration = dataset.training.sample(CALIBRATION_PICTURES)
        imported.checkpoint.evaluation = dataset.testing
        notes = dataset.notes
    save_checkpoint(imported.checkpoint, out)
    return imported.warnings + notes


def _read(path: Path) -> dict[str, Tensor]:
    """The table of weights, floats as float32, without what trainers and profilers wrap around it."""
    data = load_tensors(path)
    if "cgd_checkpoint" in data:
        raise CheckpointError(f"{path} is a cgd-deploy checkpoint and needs no import; pass it to cgd-deploy export.")
    for key in ("state_dict", "model"):
        data = data[key] if isinstance(data.get(key), dict) else data
    data = {name: value for name, value in data.items() if str(name).split(".")[-1] not in COUNTERS}
    if alien := [name for name, value in data.items() if not (isinstance(name, str) and _is_weight(name, value))]:
        raise CheckpointError(
            f"{path} holds entries that are no floating-point weights ({_some(alien)}); "
            "pass a state_dict, bare or under 'state_dict' or 'model'."
        )
    for wrapper in WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in data):
            data = {name.removeprefix(wrapper): value for name, value in data.items()}
    state = {name: value.float() if value.is_floating_point() else value for name, value in data.items()}
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(
            f"{path} holds NaN, infinity or numbers beyond float32 in {_some(broken)}; "
            "pass weights from before training diverged."
        )
    return state


def _is_weight(name: str, value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.is_floating_point() or (name.endswith(OPTIONAL) and value.dtype == torch.int64)


def _layout(state: Mapping[str, Tensor]) -> str:
    if "features.0.weight" in state or any(name.startswith("main_modules.") for name in state):
        return SEQUENTIAL  # where torchvision has "features", the first of them is no bare convolution
    if any(name.startswith(("backbone.", "heads.")) for name in state):
        return OWN
    return BACKBONE


def _foreign(name: str, layout: str) -> str:
    """What our parameter ``name`` is called in a file of this layout."""
    if layout == BACKBONE:
        return name.removeprefix("backbone.")
    if layout == OWN:
        return name
    part, child, rest = name.split(".", 2)
    return {
        "backbone": f"features.{PLACES.get(child, child)}.{rest}",
        "pools": f"global_descriptors.{child}.{rest}",
        "heads": f"main_modules.{child}.0.{rest}",
        "auxiliary": f"auxiliary_module.{child}.{rest}",
    }[part]


def _misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What is missing, left over or of another shape."""
    missing = [f"{name} is missing" for name in expected if name not in found and not name.endswith(OPTIONAL)]
    left_over = [f"{name} is left over" for name in found if name not in expected]
    reshaped = [
        f"{name} is {_shape(found[name])} instead of {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return missing + left_over + reshaped


def _backbone_misfits(state: Mapping[str, Tensor], layout: str, name: str) -> list[str]:
    with torch.device("meta"):  # shapes without memory
        shapes = build_backbone(name, "none").state_dict()
    expected = {_foreign(f"backbone.{key}", layout): tensor for key, tensor in shapes.items()}
    found = {key: tensor for key, tensor in state.items() if key.startswith(BACKBONE_PREFIX[layout])}
    return _misfits(found, expected)


def _check_backbone(state: Mapping[str, Tensor], layout: str, spec: ModelSpec, path: Path) -> None:
    if not (misfits := _backbone_misfits(state, layout, spec.backbone)):
        return
    for name in BACKBONES:
        with suppress(MissingDependency):
            if not _backbone_misfits(state, layout, name):
                raise CheckpointError(f"{path} holds a {name}, not a {spec.backbone}; pass --backbone {name}.")
    raise CheckpointError(
        f"{path}, read as {layout}, fits neither {spec.backbone} ({_some(misfits)}) nor any other known backbone; "
        f"pass the whole state_dict of one of {', '.join(BACKBONES)}."
    )


def _check_heads(state: Mapping[str, Tensor], layout: str, spec: ModelSpec, path: Path) -> None:
    """That number and length of the heads are as stated."""
    heads: list[Tensor] = []
    while (name := _foreign(f"heads.{len(heads)}.weight", layout)) in state:
        heads.append(state[name])
    if not heads:
        raise CheckpointError(f"{path} has no {name}; pass the state_dict of a whole CGD model.")
    if len(heads) != len(spec.descriptors):
        raise CheckpointError(
            f"{path} holds {len(heads)} descriptors, {spec.descriptors} names {len(spec.descriptors)}; "
            f"pass --descriptors with {len(heads)} of the letters S, M and G."
        )
    rows = [_rows(head) for head in heads]
    if len(set(rows)) == 1 and sum(rows) not in (0, spec.dim):
        raise CheckpointError(
            f"{path} holds {len(heads)} descriptors of length {rows[0]}, together {sum(rows)} and not {spec.dim}; "
            f"pass --dim {sum(rows)}."
        )


def _take_exponents(state: dict[str, Tensor], layout: str, spec: ModelSpec, path: Path) -> set[int]:
    """Take learned exponents out of ``state`` and return which descriptors have one: those are GeM."""
    learned: set[int] = set()
    for index, letter in enumerate(spec.descriptors):
        name = _foreign(f"pools.{index}.p", layout)
        if name not in state or state[name].numel() != 1:
            continue
        p = state.pop(name).item()
        if letter != "G":
            raise CheckpointError(
                f"{path} holds a learned exponent, {name}, so its descriptor {index + 1} is G and not {letter}; "
                f"pass --descriptors with G in place {index + 1}."
            )
        if not isclose(p, spec.gem_p, rel_tol=1e-6):
            raise CheckpointError(f"{path} holds {name} = {p:.7g}, not {spec.gem_p:g}; pass --gem-p {p:.7g}.")
        learned.add(index)
    return learned


def _model(state: Mapping[str, Tensor], layout: str, spec: ModelSpec, seed: int, path: Path) -> CGD:
    """The model with the weights of ``state``, all of which must find their place."""
    logits = state.get(_foreign("auxiliary.1.weight", layout))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CGD(spec, classes=_rows(logits))
    ours = model.state_dict()
    if layout == BACKBONE:
        ours = {name: tensor for name, tensor in ours.items() if name.startswith("backbone.")}
    names = {name: _foreign(name, layout) for name in ours}
    if misfits := _misfits(state, {foreign: ours[name] for name, foreign in names.items()}):
        raise CheckpointError(
            f"{path}, read as {layout}, does not fit the stated model ({_some(misfits)}); "
            "pass the state_dict of a whole CGD model and nothing else."
        )
    model.load_state_dict({**model.state_dict(), **{n: state[f] for n, f in names.items() if f in state}})
    return model.eval()


def _warnings(layout: str, spec: ModelSpec, seed: int, learned: set[int]) -> tuple[str, ...]:
    if layout == BACKBONE:
        return (
            f"the file holds a {spec.backbone} and no descriptors: their linear layers are random (seed {seed}), so "
            "this model is untrained beyond its backbone and a baseline only.",
        )
    mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (spec.mean, spec.std))
    stride = (
        f"no_downsample {spec.no_downsample} taken at your word: a stride leaves no trace in the weights, and the "
        "code in circulation removes layer3's where the paper's figure removes layer4's."
    )
    pixels = (
        f"input {spec.size_text}, {spec.resize}, mean {mean}, std {std} and {spec.color} taken at your word: "
        "weights do not tell what pictures they were trained on."
    )
    gem = [_gem_warning(spec, learned)] if "G" in spec.descriptors else []
    return (*_order_warnings(spec, learned), stride, *gem, pixels)


def _order_warnings(spec: ModelSpec, learned: set[int]) -> list[str]:
    """None if a learned exponent leaves but one reading."""
    orders = ("".join(letters) for letters in permutations("SMG", len(spec.descriptors)))
    fitting = [order for order in orders if all(order[index] == "G" for index in learned)]
    others = ", ".join(order for order in fitting if order != spec.descriptors)
    sentence = (
        f"descriptors {spec.descriptors} taken at your word: the weights fit {others} as well, and every "
        "descriptor would be wrong in silence; compare some with those of the code that trained the model."
    )
    return [sentence] if others else []


def _gem_warning(spec: ModelSpec, learned: set[int]) -> str:
    p = "" if learned else f"gem_p {spec.gem_p:g} and "
    return (
        f"{p}gem_eps {spec.gem_eps:g} taken at your word: constants are not among the weights, and code that clamps "
        "nothing before the power means gem_eps 0 where features come out of a ReLU."
    )


def _rows(tensor: Tensor | None) -> int:
    return tensor.shape[0] if tensor is not None and tensor.ndim == 2 else 0


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _some(items: Sequence[object]) -> str:
    """The first few of ``items`` and how many more there are."""
    more = [f"{len(items) - 3} more"] if len(items) > 3 else []
    return ", ".join([*map(str, items[:3]), *more])
