"""Paints a photograph without its subject: ground, clutter, blades of grass, light and camera. Knows no beetles.

A shape is a distance function in its own coordinates, evaluated once a pixel. Edges are one pixel soft, so nothing is
supersampled. Arithmetic on the coordinates bends a shape or lets it lean.
"""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.floating[Any]]  # [H, W], float32
Colour = NDArray[np.float32]  # [3], red, green, blue in 0 .. 1

GROUND_HUES = (0.08, 0.1, 0.25, 0.3, 0.55)  # soil, sand, moss, grass, slate


class Scene:
    """A canvas, float32 [H, W, 3] in 0..1.

    x, y    coordinates of each pixel, float32 [H, W], from the middle, in units of the shorter side
    pixel   size of a pixel in these units
    """

    def __init__(self, width: int, height: int) -> None:
        self.pixel = 1 / min(width, height)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        self.x, self.y = (x - width / 2) * self.pixel, (y - height / 2) * self.pixel
        self.canvas = np.zeros((height, width, 3), np.float32)

    def paint(self, mask: Plane, colour: ArrayLike) -> None:
        """Blend ``colour``, [3] or [H, W, 3], into the canvas; ``mask`` is its opacity, [H, W] in 0..1."""
        self.canvas += mask[..., None] * (np.asarray(colour, np.float32) - self.canvas)

    def darken(self, mask: Plane) -> None:
        self.canvas *= (1 - mask)[..., None]

    def turned(self, x: float, y: float, angle: float, scale: float = 1) -> tuple[Plane, Plane]:
        """Coordinates u, v of a shape at (x, y), turned by ``angle`` radians, in units of ``scale``."""
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        dx, dy = self.x - x, self.y - y
        return cos * dx + sin * dy, cos * dy - sin * dx

    def noise(self, cells: int, random: Generator) -> Plane:
        """Smooth random values in 0..1, interpolated from ``cells`` x ``cells`` independent values."""
        height, width = self.x.shape
        grid = Image.fromarray(random.integers(0, 256, (cells, cells), np.uint8))
        return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def inside(distance: Plane, softness: float) -> Plane:
    """1 where ``distance`` is negative, 0 where it is positive, and between them a ramp of width ``softness``."""
    return np.clip(0.5 - distance / softness, 0, 1)


def ellipse(u: Plane, v: Plane, a: float, b: float) -> Plane:
    """Distance to an ellipse with half axes a and b, correct to first order at its edge."""
    p, q = u / a, v / b
    level = np.sqrt(p * p + q * q)
    slope = np.sqrt((p / a) ** 2 + (q / b) ** 2) + 1e-6
    return level * (level - 1) / slope


def line(u: Plane, v: Plane, start: tuple[float, float], end: tuple[float, float], radius: float) -> Plane:
    """Distance to a line with round ends."""
    du, dv = end[0] - start[0], end[1] - start[1]
    pu, pv = u - start[0], v - start[1]
    along = np.clip((pu * du + pv * dv) / (du * du + dv * dv), 0, 1)
    return np.hypot(pu - along * du, pv - along * dv) - radius


def hsv(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def paint_ground(scene: Scene, random: Generator) -> None:
    """Paint ground of two colours with pebbles and leaves. Some of them are as bright as a beetle."""
    hue = random.choice(GROUND_HUES) + random.normal(0, 0.03)
    dark, light = sorted(random.uniform(0.15, 0.95, 2).tolist())
    coarse, fine = random.integers(3, 8), random.integers(20, 50)
    texture = 0.6 * scene.noise(int(coarse), random) + 0.4 * scene.noise(int(fine), random)
    scene.canvas += hsv(hue, random.uniform(0.1, 0.6), dark)
    scene.paint(texture, hsv(hue + random.normal(0, 0.05), random.uniform(0.1, 0.6), light))
    for _ in range(random.integers(1, 6)):
        x, y = random.uniform(-0.7, 0.7, 2).tolist()
        u, v = scene.turned(x, y, random.uniform(0, math.pi))
        a, b = random.uniform(0.04, 0.16), random.uniform(0.08, 0.3)
        if random.random() < 0.5:
            u = u / (1.05 - np.minimum(np.abs(v / b), 1))  # pointed at both ends, like a leaf
        bright = random.random() < 0.4
        colour = hsv(random.random() if bright else hue, random.uniform(0.1, 0.9), random.uniform(0.2, 0.9))
        scene.darken(0.4 * inside(ellipse(u + 0.02, v + 0.02, a, b), 0.06))
        scene.paint(inside(ellipse(u, v, a, b), scene.pixel), colour * (0.8 + 0.4 * texture[..., None]))


def paint_blade(scene: Scene, random: Generator) -> None:
    """Paint a bent blade of grass across the picture, with its shadow."""
    x, y = random.uniform(-0.35, 0.35, 2).tolist()
    u, v = scene.turned(x, y, random.uniform(0, math.pi))
    u = np.abs(u + random.normal(0, 0.4) * v * v)
    half = random.uniform(0.015, 0.06)
    colour = hsv(random.normal(0.27, 0.05), random.uniform(0.3, 0.8), random.uniform(0.3, 0.9))
    scene.darken(0.35 * inside(u - half - 0.01, 0.06))
    scene.paint(inside(u - half, scene.pixel), colour * (1 - 0.25 * u / half)[..., None])


def photograph(scene: Scene, random: Generator) -> Image.Image:
    """Take the picture: light from one side, white balance, exposure, gamma, blur and sensor noise."""
    angle, slope = random.uniform(0, 2 * math.pi), random.uniform(0, 0.4)
    fall = 1 + slope * (math.cos(angle) * scene.x + math.sin(angle) * scene.y)
    white = (random.uniform(0.92, 1.08, 3) * random.uniform(0.8, 1.15)).astype(np.float32)
    light = np.clip(scene.canvas * fall[..., None] * white, 0, 1) ** random.uniform(0.85, 1.2)
    picture = Image.fromarray((255 * light).astype(np.uint8))
    if random.random() < 0.6:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 0.2 + 0.005 / scene.pixel)))
    grain = random.uniform(1, 9) * random.standard_normal(light.shape, np.float32)
    return Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8))
