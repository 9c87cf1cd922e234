"""Made pictures: a fine-grained data set of beetles, drawn from a seed alone. Knows no training.

A species is a point of a unit cube. A genus is a random point, and each of its species moves some coordinates of it,
so that the classes next to a class look like it.
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
MOVED = 8  # coordinates in which a species leaves its genus; fewer make the classes harder to tell apart
GOLDEN = 0.618  # of a circle: steps that spread evenly, however many follow


def make_pictures(
    folder: str | Path,
    *,
    classes: int,
    pictures_per_class: int,
    size: int = 160,
    seed: int = 0,
    on_picture: Callable[[], None] | None = None,
) -> ImageList:
    """Write folder/beetle-017/003.jpg and so on, and folder/images.tsv; the same arguments give the same bytes.

    size        mean side of a picture in pixels; widths and heights vary by 15 %
    on_picture  called after every picture, for progress bars

    Raises InputError if a count or the size cannot be used or the folder cannot be written.
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
    """``count`` species, those of a genus next to each other."""
    random = np.random.default_rng((seed, 0))
    names = [field.name for field in fields(Species)]
    genus = random.random(len(names))
    species = []
    for number in range(count):
        if number and number % SPECIES_PER_GENUS == 0:
            hue = genus[names.index("hue")] + GOLDEN  # hues by chance would make some seeds' genera all green
            genus = random.random(len(names))
            genus[names.index("hue")] = hue % 1
        values = genus.copy()
        moved = random.choice(len(values), MOVED, replace=False)
        # Around the circle by at least a third, so that a moved coordinate can be seen.
        values[moved] = (values[moved] + random.uniform(0.33, 0.67, MOVED)) % 1
        species.append(Species(*values.tolist()))
    return species


def draw_picture(species: Species, size: int, random: Generator) -> Image.Image:
    """One picture of a species; pose, place, clutter, occlusion, light and camera come from ``random``."""
    width, height = (size * random.uniform(0.85, 1.15, 2)).astype(int).tolist()
    scene = Scene(width, height)
    paint_ground(scene, random)
    paint_beetle(scene, species, random)
    for _ in range(random.choice(3, p=(0.5, 0.35, 0.15))):
        paint_blade(scene, random)
    return photograph(scene, random)
