"""ModelSpec: the facts on which training, export, engine and caller must agree. Knows no weights and no files."""

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
"""The most values of a descriptor; the default is 1,536."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRETCH = "pillow-bilinear"
"""The only resize rule of releases up to 0.1.0."""


class Precision(str, Enum):
    """Arithmetic of the backbone's convolutions. FP16 and INT8 engines compute the descriptor head in FP32.

    In TF32, an NVIDIA GPU rounds the factors of FP32 products to 10 bits of mantissa, as many as FP16 has. Sums and
    stored values stay FP32, with the range of FP32. In BF16, a CPU stores values and factors with 7 bits of mantissa
    and the range of FP32; sums are FP32. TF32 and BF16 count in the descriptor head too.

    Example:

        from cgd_deploy import Precision, load

        with load("model.cgd") as engine:
            print(engine.precision is Precision.FP32, engine.precision.value)
    """

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def in_graph(self) -> Precision:
        """Precision of the graph's types. TF32 and BF16 engines have the FP32 graph, and a setting of the library."""
        return Precision.FP32 if self in (Precision.TF32, Precision.BF16) else self


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A CGD model as data, stored in the checkpoint, in the ONNX metadata and in the engine's manifest.

    backbone        name in torchvision or timm; cgd_train.backbone.BACKBONES lists the names
    descriptors     global descriptors in order: S (SPoC, mean), M (MAC, max), G (GeM); SG differs from GS
    dim             length of the joined descriptor; each of n global descriptors has dim / n values
    no_downsample   the stage whose stride is removed ("layer4" as in the paper's figure), or "none"
    gem_p, gem_eps  GeM(x) = (mean(max(x, eps)^p))^(1/p)   (CGD section 3.1; Radenović et al. 2018)
    input_size      height and width in pixels
    resize          how pictures are resized to input_size, see ResizeRule; "pillow-bilinear" ignores the aspect ratio
    mean, std       per channel, for pixels divided by 255
    color           order of the channels
    space_id        16 hex digits; descriptors are comparable if their models have the same. "" before the first save

    Raises SpecError that names the field and its value.

    Example:

        from cgd_deploy import ModelSpec

        spec = ModelSpec(backbone="resnet50", descriptors="SG", dim=1536, input_size=(224, 224))
        print(spec.summary)  # SG 1536 values, 224x224
        same = ModelSpec.from_json(spec.to_json())
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
        """Exponent of each branch's generalized mean, in order: SPoC has p = 1, and MAC has p = inf."""
        exponent = {"S": 1.0, "M": math.inf, "G": float(self.gem_p)}
        return tuple(exponent[letter] for letter in self.descriptors)

    @property
    def rule(self) -> ResizeRule:
        """``resize`` as a ResizeRule."""
        return ResizeRule.parse(self.resize)

    @property
    def size_text(self) -> str:
        """The input size, for example "224x224"."""
        return f"{self.input_size[0]}x{self.input_size[1]}"

    @property
    def input_text(self) -> str:
        """The input size and the resize rule, for example "224x224, stretched by bilinear"."""
        return f"{self.size_text}, {self.rule.words}"

    @property
    def summary(self) -> str:
        """The model in a few words, for example "SG 1536 values, 224x224". Leaves out the default resize rule."""
        return f"{self.descriptors} {self.dim} values, {self.size_text if self.resize == STRETCH else self.input_text}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain lists, strings and numbers."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def to_json(self) -> str:
        """``to_dict`` as JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, data: object) -> ModelSpec:
        """The inverse of ``to_dict``. Raises SpecError for a missing or unknown field or a wrong value."""
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
