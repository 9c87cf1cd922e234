"""Measures which threads, streams and batch size run an engine fastest on this machine, and writes them beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..hardware.cpu import available_threads, cpu_clock
from ..hardware.timing import interleaved, load_between
from ..spec import Precision
from .backends import default_device
from .engine import open_engine
from .enginefile import Manifest, read_engine
from .golden import golden_images
from .tuning import Setting, candidates, choice, write_tuning

BATCHES = (1, 2, 4, 8, 16, 32)
SECONDS = 20.0


def check_tunable(backend: str, precision: Precision) -> None:
    """Raise InputError for an engine that runs on a GPU by default."""
    if default_device(backend, precision) == "cuda":
        raise InputError(
            f"autotuning chooses settings for CPUs, and {backend} runs {precision.value} on a GPU; leave "
            "--autotune out."
        )


def autotune(
    path: str | Path,
    *,
    batches: Sequence[int] | None = None,
    seconds: float | None = None,
    on_progress: Callable[[str, float], None] = lambda what, done: None,
) -> Manifest:
    """Time the CPU engine at ``path`` in the settings of ``candidates``, in turns, and write the result beside it.

    batches       batch sizes to try, None: 1, 2, 4, ... 32
    seconds       seconds of timing in all, None: 20; each setting is timed at least 12 times
    on_progress   called with the name of the step and the fraction done

    Changes neither the engine file nor the tunings of other machines. Returns the manifest with the ``tuning`` of this
    machine, which ``load`` uses on machines like this one.
    Raises EngineError for an engine that cannot be loaded here; InputError for an engine on a GPU, or a folder that
    cannot be written.
    """
    file = read_engine(path)
    manifest = file.manifest
    check_tunable(manifest.backend, manifest.precision)
    fitting = [batch for batch in batches or BATCHES if batch <= manifest.profile["max"]]
    settings = candidates(available_threads(), fitting)
    pixels = golden_images(manifest.spec, max(fitting))
    with ExitStack() as stack:
        loaded = {
            (threads, streams): stack.enter_context(open_engine(file, threads=threads, streams=streams))
            for threads, streams in {(setting.threads, setting.streams): None for setting in settings}
        }

        def call(setting: Setting) -> Callable[[], object]:
            engine = loaded[setting.threads, setting.streams]
            return lambda: engine.embed(pixels[: setting.batch])

        started = cpu_clock()
        taken = interleaved(
            {str(setting): call(setting) for setting in settings},
            SECONDS if seconds is None else seconds,
            lambda done: on_progress("Tuning", done),
        )
        load = load_between(started, cpu_clock(), available_threads())
    tuning = choice({setting: setting.batch / float(np.median(taken[str(setting)])) for setting in settings})
    tuning["load"] = load
    write_tuning(file.path, file.manifest_sha256, tuning)
    return replace(manifest, tuning=tuning)
