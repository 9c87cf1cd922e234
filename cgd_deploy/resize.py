"""ResizeRule: fits a picture to the model's input, as ``ModelSpec.resize`` says. Knows sizes and no pixels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import SpecError

FILTERS = ("bilinear", "bicubic", "lanczos", "box")
"""Pillow's filters with antialiasing, by their names in lower case."""
LONGEST_SIDE = 1 << 13

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True)
class ResizeRule:
    """A resize by Pillow, and possibly a crop. ``str`` gives the text of the rule in a ModelSpec.

    filter    one of FILTERS
    shorter   None: resize to the input size, without keeping the aspect ratio ("pillow-bilinear"). Else: resize so that
              the shorter side has this many pixels, keeping the aspect ratio, and cut the input out of the centre
              ("pillow-bicubic-shorter-256"; in torchvision: Resize(256, BICUBIC) and CenterCrop)

    Raises SpecError that names the rule.
    """

    filter: str = "bilinear"
    shorter: int | None = None

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise SpecError(f"filter={self.filter!r:.60} is unknown; this release knows {', '.join(FILTERS)}.")
        if self.shorter is not None and not 1 <= self.shorter <= LONGEST_SIDE:
            raise SpecError(f"the shorter side of resize={str(self)!r:.60} must be 1 to {LONGEST_SIDE} pixels.")

    @classmethod
    def parse(cls, text: str) -> ResizeRule:
        """The inverse of ``str``."""
        parts = re.fullmatch(rf"pillow-({'|'.join(FILTERS)})(?:-shorter-([1-9][0-9]{{0,5}}))?", str(text), re.ASCII)
        if parts is None:
            raise SpecError(
                f"resize={text!r:.60} is unknown; this release knows pillow-FILTER and pillow-FILTER-shorter-PIXELS, "
                f"where FILTER is {', '.join(FILTERS)}."
            )
        return cls(parts[1], int(parts[2]) if parts[2] else None)

    def __str__(self) -> str:
        return f"pillow-{self.filter}" + ("" if self.shorter is None else f"-shorter-{self.shorter}")

    @property
    def words(self) -> str:
        """The rule for people, for example "shorter side to 256 by bicubic, centre crop"."""
        if self.shorter is None:
            return f"stretched by {self.filter}"
        return f"shorter side to {self.shorter} by {self.filter}, centre crop"

    def check(self, input_size: Size) -> None:
        """Raise SpecError if a resized picture could be smaller than the input: a crop is never padded."""
        if self.shorter is not None and self.shorter < max(input_size):
            raise SpecError(
                f"resize={str(self)!r} gives pictures smaller than input_size={input_size}; the shorter side must be "
                f"{max(input_size)} pixels or more."
            )

    def resized(self, size: Size, input_size: Size) -> Size:
        """The size of a picture after the resize and before the crop."""
        if self.shorter is None:
            return input_size
        height, width = size
        longer = int(self.shorter * max(size) / min(size))  # torchvision cuts the fraction off
        return (self.shorter, longer) if height <= width else (longer, self.shorter)


def centre(size: Size, input_size: Size) -> Size:
    """Top and left of the input in the centre of a picture of this size, rounded as in torchvision."""
    top, left = (round((whole - part) / 2) for whole, part in zip(size, input_size, strict=True))
    return top, left
