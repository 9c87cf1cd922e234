"""Recipes that make an INT8 model of an FP32 model: a calibration, with or without equalization and bias correction.

Does not choose the convolutions that stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import onnx

from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList

from ..metadata import get_metadata
from .bias import bias_corrected
from .calibrate import Activations, Calibration, Ranges
from .compensate import compensated, first_window
from .equalize import equalized
from .quantize import FULL_RANGE, REDUCED_RANGE, Layout, convolutions, int8_edges, quantized

EXTRAS = {"equalized": "equalized", "bias_corrected": "bias corrected", "reduced_range": "reduced range"}
"""Field of a recipe that is on or off -> its name in the recipe's text."""


@dataclass(frozen=True)
class Recipe:
    """The steps besides rounding; as text, for example "mse + equalized + bias corrected".

    calibration      see ``Calibration``
    equalized        see ``equalize``
    bias_corrected   see ``bias``
    reduced_range    7-bit weights, whose sums of products are right on CPUs without VNNI, AMX or i8mm
    """

    calibration: Calibration = Calibration.MEAN
    equalized: bool = False
    bias_corrected: bool = False
    reduced_range: bool = False

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """The recipe whose ``str`` is ``text``; raises InputError for any other text."""
        method, *extras = (part.strip() for part in text.split("+"))
        known = [calibration.value for calibration in Calibration]
        if method not in known or len(extras) > len(set(extras).intersection(EXTRAS.values())):
            raise InputError(
                f"calibration {text!r} is unknown; expected auto, {', '.join(known[:-1])} or {known[-1]}, and after it "
                f"any of {', '.join(repr(f'+ {name}') for name in EXTRAS.values())}."
            )
        return cls(Calibration(method), **{field: name in extras for field, name in EXTRAS.items()})

    def __str__(self) -> str:
        return " + ".join([self.calibration.value, *(name for field, name in EXTRAS.items() if getattr(self, field))])

    @property
    def weight_range(self) -> int:
        return REDUCED_RANGE if self.reduced_range else FULL_RANGE


DEFAULT = Recipe(bias_corrected=True)
"""The recipe of plain INT8. Bias correction costs nothing at run time. On ResNet-18 and ResNet-50 it kept 0.01 to 0.02
more of the ten nearest neighbours, with either CPU runtime."""


class Int8Models:
    """INT8 models of one FP32 model in one layout; a pass over the pictures runs when a recipe first needs it.

    images        calibration pictures
    on_pictures   called with the number of pictures just measured, in each pass over them
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layout: Layout,
        images: ImageList,
        on_pictures: Callable[[int], None] | None = None,
    ) -> None:
        self._model, self._layout = model, layout
        self._images, self._on_pictures = images, on_pictures

    def make(self, recipe: Recipe, keep_float: Collection[str] = ()) -> onnx.ModelProto:
        """The model of ``recipe`` with the named nodes in float.

        Raises ExportError as ``quantized`` does, InputError if a picture cannot be decoded, MissingDependency without
        ONNX Runtime.
        """
        measured = self._activations(recipe)
        result = quantized(measured.model, self.ranges(recipe), self._layout, keep_float, recipe.weight_range)
        if patches := measured.patches:
            moment = patches.covariance if recipe.bias_corrected else patches.second_moment
            result = compensated(result, measured.model, moment, recipe.weight_range)
        return bias_corrected(result, measured.model, measured.means) if recipe.bias_corrected else result

    def ranges(self, recipe: Recipe) -> Ranges:
        return self._activations(recipe).ranges(recipe.calibration)

    def _activations(self, recipe: Recipe) -> Activations:
        return self._of_equalized if recipe.equalized else self._of_plain

    @cached_property
    def _of_plain(self) -> Activations:
        return self._measured(self._model)

    @cached_property
    def _of_equalized(self) -> Activations:
        return self._measured(equalized(self._model, self._of_plain.largest))

    def _measured(self, model: onnx.ModelProto) -> Activations:
        layouts = (*Layout, self._layout)  # all of them: the set of outputs changes the last bit of a tensor
        highest = {edge.ranged: edge.codes.high for layout in layouts for edge in int8_edges(model, layout)}
        channels = {node.input[0]: 1 if node.op_type == "Conv" else -1 for node in convolutions(model)}
        spec = get_metadata(model).spec
        return Activations(model, highest, channels, self._images, spec, self._on_pictures, first_window(model))
