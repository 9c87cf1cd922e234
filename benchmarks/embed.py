"""How much speed an engine loses by reading JPEG files: embedding a folder, against the same pixels in memory.

    python benchmarks/embed.py int8.cgd pictures/ -o benchmarks/results/embed.json

The pictures become JPEG files of several sizes. Embedding each of them, with and without --fast-decode, and embedding
pixels in memory take turns, with the setting that autotuning chose for this machine, or else on every core in batches
of 8.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import running
from cgd_deploy.cli.terminal import warn_of_load
from cgd_deploy.hardware.cpu import available_threads, cpu_clock
from cgd_deploy.hardware.timing import interleaved, load_between
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.pictures.preprocess import batches, decode
from cgd_deploy.quality.bench import environment
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.engine import Engine, open_engine
from cgd_deploy.runtime.enginefile import EngineFile, read_engine
from cgd_deploy.runtime.tuning import Setting, setting_here
from cgd_deploy.search.index import Reading, index_images

QUALITY = 90


def measure(options: argparse.Namespace, on_progress: OnProgress) -> running.Result:
    """Embed pixels from memory and files of each size; return the speeds. Raises CgdError for unreadable input."""
    images = read_images(options.images).sample(options.pictures)
    file = read_engine(options.engine)
    setting = chosen_setting(options, file)
    with TemporaryDirectory() as folder:
        files = {size: jpeg_files(images, size, Path(folder) / str(size)) for size in options.megapixels}
        kinds = list(product(files, (False, True)))
        with open_engine(file, threads=setting.threads, streams=setting.streams) as engine:
            calls: dict[str, Callable[[], object]] = {"memory": from_memory(engine, images, setting.batch)}
            for size, fast in kinds:
                reading = Reading(batch_size=setting.batch, fast_decode=fast)
                calls[f"{size} {fast}"] = partial(index_images, engine, files[size], reading)
            started = cpu_clock()
            taken = interleaved(calls, options.seconds, partial(on_progress, "timing"))
            load = load_between(started, cpu_clock(), setting.threads)
        bytes_of = {size: sum(path.stat().st_size for path in files[size].paths) / len(images) for size in files}
    warn_of_load(load)
    speeds = {name: len(images) / float(np.median(seconds)) for name, seconds in taken.items()}
    return {
        "schema": 2,
        "environment": environment(images, setting.threads, {setting.batch: taken}, load),
        "engine": {"backend": file.manifest.backend, "precision": file.manifest.precision.value},
        "setting": asdict(setting),
        "images_per_second": round(speeds["memory"], 2),
        "files": [
            {
                "megapixels": size,
                "bytes": round(bytes_of[size]),
                "fast_decode": fast,
                "images_per_second": round(speeds[f"{size} {fast}"], 2),
                "files_over_memory": round(speeds[f"{size} {fast}"] / speeds["memory"], 4),
            }
            for size, fast in kinds
        ],
    }


def chosen_setting(options: argparse.Namespace, file: EngineFile) -> Setting:
    """What the options say; the rest is as autotuning chose it, or the default."""
    tuned = setting_here(file.tunings, "throughput") or Setting(available_threads(), 1, 8)
    return Setting(options.threads or tuned.threads, options.streams or tuned.streams, options.batch or tuned.batch)


def jpeg_files(images: ImageList, megapixels: float, folder: Path) -> ImageList:
    """Write the pictures as JPEG files of ``megapixels``. Aspect ratios stay; colour has half the resolution."""
    folder.mkdir()
    for number in range(len(images)):
        image = decode(images.path(number), images.box(number))
        factor = sqrt(megapixels * 1e6 / (image.width * image.height))
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", quality=QUALITY)
    return read_images(folder)


def from_memory(engine: Engine, images: ImageList, batch: int) -> Callable[[], None]:
    """A call that describes all pictures, which are decoded already."""
    decoded = [pixels for _, pixels in batches(images, engine.spec, batch)]

    def embed() -> None:
        for pixels in decoded:
            engine.embed(pixels)

    return embed


def main() -> None:
    parser = running.parser(__doc__, "embed.json")
    parser.add_argument("engine", type=Path, help="a .cgd file")
    parser.add_argument("images", help="a folder, LIST.tsv or glob pattern")
    parser.add_argument("--pictures", type=int, default=64, help="evenly taken of them [default: 64]")
    parser.add_argument(
        "--megapixels", type=float, nargs="+", default=[0.1, 1.0, 4.0], help="of the files [default: 0.1 1 4]"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing [default: 60]")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    if len(set(options.megapixels)) < len(options.megapixels) or not all(
        0 < size <= 100 for size in options.megapixels
    ):
        parser.error("--megapixels takes different sizes, above 0 and up to 100")
    if options.pictures < 1:
        parser.error("--pictures takes 1 or more")
    result = running.run(measure, options)
    running.show(result, "setting", "images_per_second", "files")


if __name__ == "__main__":
    main()
