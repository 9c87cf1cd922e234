"""How much speed an engine loses by reading JPEG files: embedding a folder, against the same pixels in memory.

    python benchmarks/embed.py int8.cgd pictures/ -o benchmarks/results/embed.json

Both take turns, with the setting that autotuning chose for this machine, or else on every core in batches of 8.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

import running
from cgd_deploy.cli.terminal import warn_of_load
from cgd_deploy.hardware.cpu import available_threads, cpu_clock
from cgd_deploy.hardware.timing import interleaved, load_between
from cgd_deploy.pictures.images import read_images
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.quality.bench import environment
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.engine import open_engine
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.runtime.tuning import Setting, setting_here
from cgd_deploy.search.index import Reading, index_images


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, object]:
    """Images a second of both and their ratio; raises CgdError for what cannot be read."""
    images = read_images(options.images).sample(options.pictures)
    file = read_engine(options.engine)
    manifest = file.manifest
    tuned = setting_here(file.tunings, "throughput") or Setting(available_threads(), 1, 8)
    batch = options.batch or tuned.batch
    threads, streams = options.threads or tuned.threads, options.streams or tuned.streams
    decoded = [pixels for _, pixels in batches(images, manifest.spec, batch)]
    with open_engine(file, threads=threads, streams=streams) as engine:

        def from_memory() -> None:
            for pixels in decoded:
                engine.embed(pixels)

        def from_files() -> None:
            index_images(engine, images, Reading(batch_size=batch, fast_decode=options.fast_decode))

        started = cpu_clock()
        calls = {"memory": from_memory, "files": from_files}
        taken = interleaved(calls, options.seconds, partial(on_progress, "timing"))
        load = load_between(started, cpu_clock(), threads)
    warn_of_load(load)
    memory, files = (len(images) / float(np.median(taken[name])) for name in ("memory", "files"))
    sizes = [path.stat().st_size for path in images.paths]
    return {
        "schema": 1,
        "environment": environment(images, threads, {batch: taken}, load),
        "engine": {"backend": manifest.backend, "precision": manifest.precision.value},
        "setting": {"threads": threads, "streams": streams, "batch": batch, "fast_decode": options.fast_decode},
        "bytes_per_picture": round(float(np.mean(sizes))),
        "images_per_second": {"memory": round(memory, 2), "files": round(files, 2)},
        "files_over_memory": round(files / memory, 4),
    }


def main() -> None:
    parser = running.parser(__doc__, "embed.json")
    parser.add_argument("engine", type=Path, help="a .cgd file")
    parser.add_argument("images", help="a folder, LIST.tsv or glob pattern")
    parser.add_argument("--pictures", type=int, default=256, help="evenly taken of them [default: 256]")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing [default: 60]")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--fast-decode", action="store_true")
    result = running.run(measure, parser.parse_args())
    running.show(result, "setting", "images_per_second", "files_over_memory")


if __name__ == "__main__":
    main()
