"""Paints one beetle of a species in a random pose. Knows nothing of the ground around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .scene import Colour, Plane, Scene, ellipse, hsv, inside, line

PATTERNS = ("spots", "stripes", "bands", "chevrons", "checks")
BLACK = np.array((0.07, 0.06, 0.06), np.float32)
OUTLINE = 0.02
LEG = 0.028

# Positions along the body, from -1 (head) to 1 (tail): the wing cases, and where each pair of legs starts and points.
WINGS_AT, WINGS_LENGTH = 0.32, 0.62
LEGS = ((-0.35, -0.45), (0.0, 0.1), (0.25, 0.6))


@dataclass(frozen=True)
class Species:
    """The look that all pictures of a class share. Every value lies in [0, 1)."""

    width: float
    taper: float
    thorax_width: float
    thorax_length: float
    head: float
    legs: float
    antennae: float
    hue: float
    lightness: float
    second_hue: float
    second_lightness: float
    pattern: float
    count: float
    cover: float
    border: float
    thorax_colour: float

    @property
    def colours(self) -> tuple[Colour, Colour, Colour]:
        """Colours of the wing cases, of the marks on them, and of the thorax."""
        base = hsv(self.hue, 0.85, 0.35 + 0.6 * self.lightness)
        second = hsv(self.hue + 0.2 + 0.6 * self.second_hue, 0.75, 0.2 + 0.8 * self.second_lightness)
        return base, second, (BLACK, base, second, 0.5 * base)[int(4 * self.thorax_colour)]


def paint_beetle(scene: Scene, species: Species, random: Generator) -> None:
    """Paint a beetle, seen from above. Its coordinate u points to its right, and v from its head to its tail."""
    scale = random.uniform(0.4, 0.5)
    x, y = random.uniform(-0.08, 0.08, 2).tolist()
    u, v = scene.turned(x, y, random.normal(0, 0.25), scale)
    u = u + random.normal(0, 0.08) * v + random.normal(0, 0.06) * v * v  # lean and bend
    pixel = scene.pixel / scale

    width = 0.32 + 0.26 * species.width
    thorax_width = width * (0.55 + 0.5 * species.thorax_width)
    thorax_length = 0.14 + 0.12 * species.thorax_length
    thorax_at = WINGS_AT - WINGS_LENGTH + 0.02 - 0.5 * thorax_length
    head = 0.11 + 0.1 * species.head
    head_at = thorax_at - thorax_length - 0.35 * head
    base, second, thorax_colour = species.colours

    away = random.uniform(0.03, 0.12)
    scene.darken(0.55 * inside(ellipse(u + away, v - 0.15 + away, 1.05 * width, 0.85), 0.25))
    limbs = np.minimum(_legs(u, v, width, species, random), _antennae(u, v, head_at, species, random))
    scene.paint(inside(limbs, pixel), BLACK + 0.25 * base)

    light_u, light_v = random.uniform(-0.6, 0.6, 2).tolist()
    from_light = (u / width - light_u) ** 2 + ((v - 0.1) / 0.85 - light_v) ** 2
    shade = (1.1 - 0.28 * from_light + 0.9 * np.exp(-from_light / 0.03))[..., None]  # a dome with a glossy spot

    scene.paint(inside(ellipse(u, v - head_at, 1.15 * head, head), pixel), BLACK + 0.3 * thorax_colour)
    scene.paint(inside(ellipse(np.abs(u) - head, v - head_at + 0.2 * head, 0.06, 0.06), pixel), BLACK)
    thorax = ellipse(u, v - thorax_at, thorax_width, thorax_length)
    scene.paint(inside(thorax - OUTLINE, pixel), BLACK)
    scene.paint(inside(thorax, pixel), thorax_colour * shade)

    along = (v - WINGS_AT) / WINGS_LENGTH
    narrowing = 1 - (0.1 + 0.4 * species.taper) * np.clip(along + 0.3, 0, 1.3) ** 2
    across = np.abs(u) / narrowing
    wings = ellipse(across, v - WINGS_AT, width, WINGS_LENGTH)
    on_wings = inside(wings, pixel)
    ridges = (1 + 0.08 * np.cos(44 * across))[..., None]
    marks = _pattern(across / width, along, species)
    if species.border > 0.6:
        marks = np.maximum(marks, inside(-wings - 0.09, pixel))
    scene.paint(inside(wings - OUTLINE, pixel), 0.3 * base)
    scene.paint(on_wings, base * shade * ridges)
    scene.paint(on_wings * marks, second * shade)
    scene.paint(on_wings * inside(np.abs(u) - 0.012, pixel), BLACK)


def _legs(u: Plane, v: Plane, width: float, species: Species, random: Generator) -> Plane:
    """Distance to three pairs of legs. Left and right legs are half a step apart."""
    reach = 0.25 + 0.4 * species.legs
    step = random.normal(0, 0.06) * np.sign(u)
    distance = np.full_like(u, np.inf)
    for number, (root, lean) in enumerate(LEGS):
        stepped = v + step if number % 2 else v - step
        knee = (width + 0.45 * reach, root + 0.4 * lean + random.normal(0, 0.03))
        foot = (width + reach, root + lean + random.normal(0, 0.05))
        distance = np.minimum(distance, line(np.abs(u), stepped, (0.5 * width, root), knee, 1.3 * LEG))
        distance = np.minimum(distance, line(np.abs(u), stepped, knee, foot, LEG))
    return distance


def _antennae(u: Plane, v: Plane, head_at: float, species: Species, random: Generator) -> Plane:
    length = 0.2 + 0.55 * species.antennae
    spread = random.uniform(0.5, 0.9)
    bend = (0.06 + 0.6 * length * spread, head_at - 0.25 * length)
    tip = (0.06 + length * spread, head_at - 0.8 * length)
    root = line(np.abs(u), v, (0.05, head_at), bend, 0.8 * LEG)
    return np.minimum(root, line(np.abs(u), v, bend, tip, 0.8 * LEG))


def _pattern(across: Plane, along: Plane, species: Species) -> Plane:
    """Share of the second colour on the wing cases, 0 to 1.

    across   0 in the middle of the body, 1 at its edge
    along    -1 at the front of the wing cases, 1 at their end
    """
    kind = PATTERNS[int(len(PATTERNS) * species.pattern)]
    count = 2 + int(4 * species.count)
    rows = np.cos(math.pi * count * (along + 1))
    columns = -np.cos(2 * math.pi * (1 + count // 2) * across)
    level = 0.7 - 1.2 * species.cover
    if kind == "chevrons":
        rows = np.cos(math.pi * count * (along + 1 - 0.5 * across))
    if kind == "checks":
        level *= 0.5
    wave = {"spots": 0.5 * (rows + columns), "stripes": columns, "checks": rows * columns}.get(kind, rows)
    return np.clip(0.5 + 5 * (wave - level), 0, 1)
