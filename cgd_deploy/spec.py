"""ModelSpec: everything that must agree between training, export, engine and caller. Knows no weights and no files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

from .errors import SpecError
from .resize import ResizeRule

LONGEST = 1 << 16
"""Values of a descriptor; far more than anybody trains, far less than memory."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRETCH = "pillow-bilinear"
"""The only rule of releases up to 0.1.0."""


class Precision(str, Enum):
    """Arithmetic of the backbone's convolutions; the descriptor head is FP32, or TF32 in a TF32 engine.

    TF32 lets an NVIDIA GPU round the factors of FP32 products to 10 bits of mantissa, as many as FP16 has. Sums and
    stored values stay FP32, with the range of FP32.
    """

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def in_graph(self) -> Precision:
        """The precision that the types of the graph show. A TF32 engine has the FP32 graph and a setting of the GPU."""
        return Precision.FP32 if self is Precision.TF32 else self


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A CGD model as data: written in the checkpoint, in the ONNX metadata and in the engine's manifest.

    backbone        its name in torchvision or timm; cgd_train.backbone.BACKBONES has them all
    descriptors     global descriptors in order: S (SPoC, mean), M (MAC, max), G (GeM); SG is not GS
    dim             length of the joined descriptor; each of n descriptors takes dim / n
    no_downsample   the stage whose stride is removed ("layer4" as in the paper's figure), or "none"
    gem_p, gem_eps  GeM(x) = (mean(max(x, eps)^p))^(1/p)   (CGD section 3.1; Radenović et al. 2018)
    input_size      height, width in pixels
    resize          how pictures come to input_size, see ResizeRule; "pillow-bilinear" stretches them straight to it
    mean, std       per channel, for pixels divided by 255
    color           order of the channels
    space_id        16 hex digits that change when descriptors stop being comparable; "" before the first save

    Raises SpecError that names the field and its value.
    """

    backbone: str
    descriptors: str
    dim: int = 1536
    no_downsample: str = "layer4"
    gem_p: float = 3.0
    gem_eps: float = 1e-6
    input_size: tuple[int, int] = (224, 224)
    resize: str = STRETCH
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    color: str = "RGB"
    space_id: str = ""

    def __post_init__(self) -> None:
        letters = self.descriptors
        if not isinstance(letters, str) or not letters or len(set(letters) & set("SMG")) != len(letters):
            raise SpecError(f"descriptors={letters!r:.60} must be S, M and G in any order, each at most once, e.g. SG.")
        for name in ("backbone", "no_downsample", "space_id"):
            if not isinstance(value := getattr(self, name), str) or len(value) > 60:
                raise SpecError(f"{name}={value!r:.60} must be a text of 60 characters at most.")
        if type(self.dim) is not int or not 1 <= self.dim <= LONGEST or self.dim % len(letters):
            raise SpecError(
                f"dim={self.dim!r:.60} must be a multiple of the {len(letters)} descriptors from 1 to {LONGEST}."
            )
        if not (_is_number(self.gem_p) and self.gem_p > 0):
            raise SpecError(f"gem_p={self.gem_p!r:.60} must be positive and finite; use descriptor M for the maximum.")
        if not (_is_number(self.gem_eps) and 0 <= self.gem_eps < 1):
            raise SpecError(f"gem_eps={self.gem_eps!r:.60} must lie between 0 and 1.")
        if len(self.input_size) != 2 or not all(type(n) is int and 32 <= n <= 4096 for n in self.input_size):
            raise SpecError(f"input_size={self.input_size!r:.60} must be height and width from 32 to 4096 pixels.")
        self.rule.check(self.input_size)
        if self.color != "RGB":
            raise SpecError(f"color={self.color!r:.60} is unknown; this release knows 'RGB'.")
        if len(self.mean) != 3 or not all(map(_is_number, self.mean)):
            raise SpecError(f"mean={self.mean!r:.60} must be three finite numbers.")
        if len(self.std) != 3 or not all(_is_number(s) and s > 0 for s in self.std):
            raise SpecError(f"std={self.std!r:.60} must be three positive, finite numbers.")

    @property
    def branch_p(self) -> tuple[float, ...]:
        """The generalized mean's exponent of each branch in order: SPoC is p = 1 and MAC its limit p = inf."""
        exponent = {"S": 1.0, "M": math.inf, "G": float(self.gem_p)}
        return tuple(exponent[letter] for letter in self.descriptors)

    @property
    def rule(self) -> ResizeRule:
        """``resize`` as numbers."""
        return ResizeRule.parse(self.resize)

    @property
    def size_text(self) -> str:
        """The input size, for example 224x224."""
        return f"{self.input_size[0]}x{self.input_size[1]}"

    @property
    def input_text(self) -> str:
        """The input size and how pictures come to it, for example 224x224, stretched by bilinear."""
        return f"{self.size_text}, {self.rule.words}"

    @property
    def summary(self) -> str:
        """The model in a few words, for example "SG 1536 values, 224x224"; a usual stretch is not mentioned."""
        return f"{self.descriptors} {self.dim} values, {self.size_text if self.resize == STRETCH else self.input_text}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers only."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def to_json(self) -> str:
        """``to_dict`` as JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, data: object) -> ModelSpec:
        """The inverse of ``to_dict``; a missing or unknown field is a SpecError, never a guess."""
        if not isinstance(data, Mapping):
            raise SpecError(f"a model spec must be a table of fields, not {type(data).__name__}.")
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(data)):
            raise SpecError(f"the model spec lacks {', '.join(missing)}; write the checkpoint again with this release.")
        if unknown := sorted(map(repr, set(data) - names)):
            raise SpecError(
                f"the model spec has unknown fields {', '.join(unknown)[:60]}; a newer cgd-deploy wrote it."
            )
        try:
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
            return cls(**values)
        except TypeError as error:
            raise SpecError(f"the model spec has a field of the wrong type: {error}.") from error

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The inverse of ``to_json``. Raises SpecError as ``from_dict`` does."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"the model spec is not JSON: {error}.") from error
        return cls.from_dict(data)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
