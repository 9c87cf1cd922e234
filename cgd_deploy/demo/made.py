"""Draws a fine-grained data set of beetles from a seed. Knows nothing of training.

A species is a point in a unit cube. A genus is a random point. Each species of the genus changes some of its
coordinates, so neighbouring classes look alike.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from ..errors import InputError
from ..files import replacing, write_text
from ..hardware.cpu import available_threads
from ..pictures.images import ImageList, read_images
from .beetle import Species, paint_beetle
from .scene import Scene, paint_blade, paint_ground, photograph

SPECIES_PER_GENUS = 6
MOVED = 8  # coordinates that a species changes; with fewer, classes are harder to tell apart
GOLDEN = 0.618  # part of a circle; any number of such steps spreads evenly


def make_pictures(
    folder: str | Path,
    *,
    classes: int,
    pictures_per_class: int,
    size: int = 160,
    seed: int = 0,
    on_picture: Callable[[], None] | None = None,
) -> ImageList:
    """Write pictures such as folder/beetle-017/003.jpg and their list folder/images.tsv; return the list.

    The same arguments give the same bytes.

    size        mean side of a picture in pixels; widths and heights vary by 15 %
    on_picture  called after every picture, for progress bars

    Raises InputError if an argument is too small or if the folder cannot be written.
    """
    arguments = (("classes", classes, 1), ("pictures_per_class", pictures_per_class, 1), ("size", size, 32))
    for name, value, minimum in (*arguments, ("seed", seed, 0)):
        if value < minimum:
            raise InputError(f"{name}={value} cannot be used; expected at least {minimum}.")
    species = make_species(classes, seed)
    names = [f"beetle-{c:03d}/{n:03d}.jpg" for c in range(classes) for n in range(pictures_per_class)]

    def make(number: int) -> None:
        kind = number // pictures_per_class
        random = np.random.default_rng((seed, 1, kind, number % pictures_per_class))
        picture = draw_picture(species[kind], size, random)
        with replacing(Path(folder) / names[number]) as temporary:
            picture.save(temporary, "JPEG", quality=int(random.integers(60, 96)))

    with ThreadPoolExecutor(available_threads()) as pool:
        for _ in pool.map(make, range(len(names))):
            if on_picture is not None:
                on_picture()
    rows = [f"{name}\t{name.split('/')[0]}\n" for name in names]
    return read_images(write_text(Path(folder) / "images.tsv", "image\tclass\n" + "".join(rows)))


def make_species(count: int, seed: int = 0) -> list[Species]:
    """``count`` species; species of the same genus are neighbours in the list."""
    random = np.random.default_rng((seed, 0))
    names = [field.name for field in fields(Species)]
    genus = random.random(len(names))
    species = []
    for number in range(count):
        if number and number % SPECIES_PER_GENUS == 0:
            hue = genus[names.index("hue")] + GOLDEN  # with random hues, all genera of some seeds would be green
            genus = random.random(len(names))
            genus[names.index("hue")] = hue % 1
        values = genus.copy()
        moved = random.choice(len(values), MOVED, replace=False)
        # At least a third of the circle: smaller changes cannot be seen.
        values[moved] = (values[moved] + random.uniform(0.33, 0.67, MOVED)) % 1
        species.append(Species(*values.tolist()))
    return species


def draw_picture(species: Species, size: int, random: Generator) -> Image.Image:
    """Draw one picture of a species. ``random`` chooses pose, place, clutter, occlusion, light and camera."""
    width, height = (size * random.uniform(0.85, 1.15, 2)).astype(int).tolist()
    scene = Scene(width, height)
    paint_ground(scene, random)
    paint_beetle(scene, species, random)
    for _ in range(random.choice(3, p=(0.5, 0.35, 0.15))):
        paint_blade(scene, random)
    return photograph(scene, random)
