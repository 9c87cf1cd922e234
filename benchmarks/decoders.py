"""How nvJPEG's pixels differ from Pillow's, and how many files a second each decodes and resizes.

    python benchmarks/decoders.py pictures/ -o build/decoders.json

Without pictures the script makes some. Both decoders decode, resize and form batches as bulk embedding does, and take
turns. No engine runs.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

import running
from cgd_deploy.cli.doctor import examine
from cgd_deploy.errors import InputError
from cgd_deploy.hardware.cpu import available_threads
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.hardware.timing import interleaved
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.cuda.driver import find_device
from cgd_deploy.runtime.cuda.nvjpeg import GROUP, NvJpeg, nvjpeg_batches, read_jpeg
from cgd_deploy.spec import ModelSpec

SPEC = ModelSpec(backbone="resnet50", descriptors="SG", dim=1536, input_size=(224, 224))
BATCH = 128
PACKAGES = ("cgd-deploy", "numpy", "pillow", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg")
MADE, MADE_SIZE = 128, (720, 960)


def make(folder: Path) -> None:
    """Write JPEG files of waves and noise, in 4:2:0 and 4:4:4 by turns."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0 : MADE_SIZE[0], 0 : MADE_SIZE[1]]
    for number in range(MADE):
        waves = [np.sin(x / random.uniform(5, 90) + y / random.uniform(5, 90)) for _ in range(3)]
        pixels = 128 + 90 * np.stack(waves, -1) + random.normal(0, 8, (*MADE_SIZE, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number}.jpg", quality=90, subsampling=2 * (number % 2))


def levels(images: ImageList) -> dict[str, float]:
    """The difference between nvJPEG's and Pillow's pixels, in levels of 255, over the files that nvJPEG decodes.

    Raises InputError if nvJPEG decodes no file.
    """
    means, largest = [], 0
    with NvJpeg(available_threads()) as decoder:
        for start in range(0, len(images), GROUP):
            paths = images.paths[start : start + GROUP]
            taken = [(path, file.data) for path in paths if (file := read_jpeg(path))]
            for (path, _), found in zip(taken, decoder.decode([data for _, data in taken]), strict=True):
                if found is not None:
                    difference = np.abs(found.astype(np.int16) - np.asarray(Image.open(path).convert("RGB")))
                    means.append(float(difference.mean()))
                    largest = max(largest, int(difference.max()))
    if not means:
        raise InputError(f"nvJPEG decodes none of the {len(images)} pictures; name a folder of JPEG files.")
    return {"pictures": len(means), "mean": round(float(np.mean(means)), 4), "max": largest}


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Compare both on the pictures of ``options``, or on made ones. Raises EngineError without a GPU."""
    find_device()
    with TemporaryDirectory() as folder:
        if options.images is None:
            make(Path(folder))
        images = read_images(options.images or folder).sample(options.pictures)
        return compare(images, options.seconds, on_progress)


def compare(images: ImageList, seconds: float, on_progress: OnProgress) -> dict[str, Any]:
    """The difference of the pixels, images a second of both, and their ratio."""
    notes: list[str] = []
    difference = levels(images)
    calls = {
        "pillow": lambda: [len(indices) for indices, _ in batches(images, SPEC, BATCH)],
        "nvjpeg": lambda: [len(indices) for indices, _ in nvjpeg_batches(images, SPEC, BATCH, on_note=notes.append)],
    }
    taken = interleaved(calls, seconds, partial(on_progress, "timing"))
    speed = {name: len(images) / float(np.median(times)) for name, times in taken.items()}
    return {
        "schema": 1,
        "gpu": examine()["gpu"],
        "versions": {name: package_version(name) for name in PACKAGES},
        "threads": available_threads(),
        "pictures": len(images),
        "bytes_per_picture": round(float(np.mean(images.sizes))),
        "levels": difference,
        "images_per_second": {name: round(value, 1) for name, value in speed.items()},
        "nvjpeg_over_pillow": round(speed["nvjpeg"] / speed["pillow"], 3),
        "note": notes[0] if notes else None,
    }


def main() -> None:
    parser = running.parser(__doc__, "decoders.json")
    parser.add_argument("images", nargs="?", help="a folder, LIST.tsv or glob pattern [default: made ones]")
    parser.add_argument("--pictures", type=int, default=1024, help="evenly taken of them [default: 1024]")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing [default: 20]")
    result = running.run(measure, parser.parse_args())
    running.show(result, "levels", "images_per_second", "nvjpeg_over_pillow")


if __name__ == "__main__":
    main()
