"""Import state_dicts that other code wrote as checkpoints.

Checks the spec against the weights as far as weights can tell, and returns a warning for each fact that they cannot.
Runs a model only to whiten the heads of a bare backbone.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgd_deploy.datasets.layouts import read_dataset
from cgd_deploy.errors import CheckpointError, InputError, MissingDependency
from cgd_deploy.files import sha256_file
from cgd_deploy.pictures.folders import some
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.spec import ModelSpec

from .backbone import BACKBONES, build_backbone
from .checkpoint import RECORDED_FOR_CALIBRATION, Checkpoint, save_checkpoint
from .config import HEAD_INIT
from .layouts import OPTIONAL, WHOLE, Found, closest, find, foreign_name, is_weight, misfits
from .model import CGD
from .pretrained import weights_file
from .weights import SAVE_AGAIN, Table, load_weights, tables, without_wrappers
from .whitening import SAMPLE, whitened


@dataclass(frozen=True)
class Imported:
    """An imported model.

    checkpoint  the model in eval mode on the CPU, float32; its origin names the file
    layout      "cgd-sequential", "cgd-deploy", "backbone" or "numbered", see ``layouts``
    warnings    one sentence for each fact that the weights could not confirm
    """

    checkpoint: Checkpoint
    layout: str
    warnings: tuple[str, ...]


def import_weights(
    path: str | Path,
    spec: ModelSpec,
    *,
    seed: int = 0,
    prefix: str | None = None,
    pictures: ImageList | None = None,
) -> Imported:
    """Read the state_dict in ``path`` as the model that ``spec`` states.

    path     a file, or the word "torchvision", see ``pretrained.weights_file``
    seed     for random heads, if the file has none and there are no pictures
    prefix   place of the model in the file, if the file holds several
    pictures   whiten the heads of a bare backbone with these training pictures, see ``whitening``

    Raises CheckpointError if the file contradicts ``spec``, holds no such model or several, or is a checkpoint already,
    SpecError for an unknown backbone, MissingDependency without the package safetensors, and the errors of
    ``weights_file``.
    """
    path = weights_file(path, spec.backbone)
    data, unread = load_weights(path)
    if "cgd_checkpoint" in data:
        raise CheckpointError(f"{path} is a cgd-deploy checkpoint and needs no import; pass it to cgd-deploy export.")
    found, notes = _found(path, data, unread, spec.backbone, prefix)
    state, layout = _floats(found.weights, path), found.layout
    learned: set[int] = set()
    if found.whole:
        _check_heads(state, layout, spec, path)
        learned = _take_exponents(state, layout, spec, path)
    model, heads = _model(state, layout, spec, seed, path), f"random (seed {seed})"
    if pictures and not found.whole:
        model, heads = whitened(model, pictures, seed), f"a whitening of {min(len(pictures), SAMPLE)} pictures"
    origin = {
        "imported_from": path.name,
        "sha256": sha256_file(path),
        "layout": layout,
        "stated": spec.to_json(),
    }
    return Imported(Checkpoint(model, origin=origin), layout, notes + _warnings(found, spec, heads, learned))


def import_checkpoint(
    path: str | Path,
    spec: ModelSpec,
    out: str | Path,
    *,
    data: str | Path | None = None,
    prefix: str | None = None,
    head_init: str = "whitened",
) -> tuple[str, ...]:
    """``import_weights``, saved as the checkpoint ``out``; returns the warnings.

    data        data set: the checkpoint records its training pictures for calibration and its test pictures for bench
    head_init   start of the heads of a bare backbone: "whitened" by the training pictures of ``data``, if there are
                any, or "random"

    Raises the errors of ``import_weights`` and ``read_dataset``, and InputError for another ``head_init``.
    """
    if head_init not in HEAD_INIT:
        raise InputError(f"head_init={head_init!r} cannot be used; expected {' or '.join(HEAD_INIT)}.")
    dataset = read_dataset(data) if data is not None else None
    pictures = dataset.training if dataset and head_init == "whitened" else None
    imported = import_weights(path, spec, prefix=prefix, pictures=pictures)
    notes: tuple[str, ...] = ()
    if dataset:
        imported.checkpoint.calibration = dataset.training.sample(RECORDED_FOR_CALIBRATION)
        imported.checkpoint.evaluation = dataset.testing
        notes = dataset.notes
    save_checkpoint(imported.checkpoint, out)
    return imported.warnings + notes


def read_backbone(path: str | Path, name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The float32 weights of backbone ``name`` from a file of any trainer or one of our checkpoints, and warnings.

    The names of the weights are those in ``build_backbone``. Raises the errors of ``import_weights``.
    """
    path = Path(path)
    data, unread = load_weights(path)
    found, notes = _found(path, data, unread, name, None)
    if found.whole:
        notes += (f"{path} holds a whole CGD model: training starts from its backbone, with new heads.",)
    return _floats(found.backbone(_shapes(name)), path), notes


def _found(
    path: Path, data: Mapping[Any, Any], unread: Sequence[str], backbone: str, prefix: str | None
) -> tuple[Found, tuple[str, ...]]:
    """The model to import from a file, and warnings about other content of the file."""
    state_dicts = tables(data)
    every = find(state_dicts, _shapes(backbone))
    if not every:
        raise _misfit(path, state_dicts, unread, backbone)
    found = every if prefix is None else [one for one in every if _is_at(one.place, prefix)]
    if not found:
        raise CheckpointError(
            f"{path} has no {backbone} at {prefix!r}; pass --prefix with one of {some(_named(every))}."
        )
    told = f"{path} also holds objects of {some(unread)}; for safety only tensors were loaded."
    notes = (told,) if unread else ()
    if len(found) == 1:
        return found[0], notes
    averages = [one for one in found if one.averaged]
    if len(averages) != 1:
        raise CheckpointError(
            f"{path} holds {len(found)} models with a {backbone}, at {some(_named(found))}; "
            f"choose one with cgd-deploy import --prefix, such as --prefix {_named(found)[0]}."
        )
    [taken], [other, *_] = _named(averages), _named(one for one in found if not one.averaged)
    chosen = (
        f"{path} holds models with a {backbone} at {some(_named(found))}; the averaged weights at {taken} were taken. "
        f"To take others, import with --prefix {other}."
    )
    return averages[0], (*notes, chosen)


def _named(found: Iterable[Found]) -> list[str]:
    """The places of the models, quoted for --prefix."""
    return [shlex.quote(one.place.strip(".")) for one in found]


def _is_at(place: str, prefix: str) -> bool:
    """Whether ``place`` is ``prefix`` or below it; "" is the file itself."""
    place, prefix = place.strip("."), without_wrappers(prefix.strip("."))
    return place == prefix or (prefix != "" and place.startswith(f"{prefix}."))


def _floats(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """All weights as float32; raises CheckpointError for anything but floats and BatchNorm's counters."""
    alien = [name for name, tensor in weights.items() if not _is_float(name, tensor)]
    if alien:
        raise CheckpointError(
            f"{path} holds entries that are no floating-point weights ({some(alien)}); "
            "pass the weights from before they were quantized or moved off the CPU."
        )
    state = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(
            f"{path} holds NaN, infinity or numbers beyond float32 in {some(broken)}; "
            "pass weights from before training diverged."
        )
    return state


def _is_float(name: str, tensor: Tensor) -> bool:
    return is_weight(tensor) and (
        tensor.is_floating_point() or (name.endswith(OPTIONAL) and tensor.dtype == torch.int64)
    )


def _shapes(backbone: str) -> dict[str, Tensor]:
    """The weights of a backbone by name, as tensors without memory."""
    with torch.device("meta"):
        return build_backbone(backbone, "none").state_dict()


def _misfit(path: Path, state_dicts: Sequence[Table], unread: Sequence[str], backbone: str) -> CheckpointError:
    """The error for a file without that backbone: names the backbone in the file, or the missing weights."""
    without = f" without its objects of {some(unread)}, which are not loaded for safety," if unread else ""
    if not state_dicts:
        return CheckpointError(f"{path}{without} holds no named tensors; {SAVE_AGAIN}.")
    for name in BACKBONES:
        with suppress(MissingDependency):
            if find(state_dicts, _shapes(name)):
                return CheckpointError(f"{path} holds a {name}, not a {backbone}; pass --backbone {name}.")
    layout, place, wrong = closest(state_dicts, _shapes(backbone))
    where = f"{layout} at {place.strip('.')}" if place else layout
    return CheckpointError(
        f"{path}, read as {where},{without} fits neither {backbone} ({some(wrong)}) nor any other known backbone; "
        f"pass the whole state_dict of one of {', '.join(BACKBONES)}."
    )


def _check_heads(state: Mapping[str, Tensor], layout: str, spec: ModelSpec, path: Path) -> None:
    """Raise CheckpointError unless number and length of the heads are as stated."""
    heads: list[Tensor] = []
    while (name := foreign_name(f"heads.{len(heads)}.weight", layout)) in state:
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
    """Remove learned exponents from ``state`` and return the numbers of their descriptors, which are GeM."""
    learned: set[int] = set()
    for index, letter in enumerate(spec.descriptors):
        name = foreign_name(f"pools.{index}.p", layout)
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
    """The model with the weights of ``state``; raises CheckpointError unless it uses all of them."""
    logits = state.get(foreign_name("auxiliary.1.weight", layout))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CGD(spec, classes=_rows(logits))
    ours = model.state_dict()
    if layout not in WHOLE:
        ours = {name: tensor for name, tensor in ours.items() if name.startswith("backbone.")}
    names = {name: foreign_name(name, layout) for name in ours}
    if wrong := misfits(state, {foreign: ours[name] for name, foreign in names.items()}):
        raise CheckpointError(
            f"{path}, read as {layout}, does not fit the stated model ({some(wrong)}); "
            "pass the state_dict of a whole CGD model and nothing else."
        )
    model.load_state_dict({**model.state_dict(), **{n: state[f] for n, f in names.items() if f in state}})
    return model.eval()


def _warnings(found: Found, spec: ModelSpec, heads: str, learned: set[int]) -> tuple[str, ...]:
    beside = [_beside_warning(found)] if found.beside else []
    if not found.whole:
        return (
            f"the file holds a {spec.backbone} and no descriptors: their linear layers are {heads}, so use this "
            "untrained model only as a baseline.",
            _pixels_warning(spec),
            *beside,
        )
    stride = (
        f"no_downsample {spec.no_downsample} is taken at your word: weights do not show strides, and published code "
        "removes the stride of layer3 where the paper's figure removes the stride of layer4."
    )
    gem = [_gem_warning(spec, learned)] if "G" in spec.descriptors else []
    return (*_order_warnings(spec, learned), stride, *gem, _pixels_warning(spec), *beside)


def _pixels_warning(spec: ModelSpec) -> str:
    mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (spec.mean, spec.std))
    return (
        f"input {spec.input_text}, mean {mean}, std {std} and {spec.color} are taken at your word: weights do not "
        "show how pictures were prepared; state it with --resize, --crop, --filter, --mean and --std."
    )


def _beside_warning(found: Found) -> str:
    return (
        f"{some(found.beside)} lie beside the model and were left out; this is right for the weights of a loss and "
        "wrong for a layer that the descriptors need."
    )


def _order_warnings(spec: ModelSpec, learned: set[int]) -> list[str]:
    """A warning about the order of the descriptors, unless a learned exponent fixes it."""
    orders = ("".join(letters) for letters in permutations("SMG", len(spec.descriptors)))
    fitting = [order for order in orders if all(order[index] == "G" for index in learned)]
    others = ", ".join(order for order in fitting if order != spec.descriptors)
    sentence = (
        f"descriptors {spec.descriptors} are taken at your word: the weights also fit {others}, and with a wrong "
        "order every descriptor is wrong; compare some descriptors with the code that trained the model."
    )
    return [sentence] if others else []


def _gem_warning(spec: ModelSpec, learned: set[int]) -> str:
    p, verb = ("", "is") if learned else (f"gem_p {spec.gem_p:g} and ", "are")
    return (
        f"{p}gem_eps {spec.gem_eps:g} {verb} taken at your word: weights do not hold constants; for code that does not "
        "clamp features before the power, gem_eps is 0 if the features come from a ReLU."
    )


def _rows(tensor: Tensor | None) -> int:
    return tensor.shape[0] if tensor is not None and tensor.ndim == 2 else 0
