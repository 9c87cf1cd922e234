"""The engines of a server by name, and how a new engine takes the place of an old one.

Only the thread of the event loop may use these objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from ...errors import CgdError, closest_known
from ...hardware.cpu import available_threads
from ...runtime.backends import default_device
from ...runtime.engine import CPU_BATCH, Engine, open_engine
from ...runtime.enginefile import read_engine
from ...runtime.scheduler import Batching
from ...runtime.tuning import Setting, setting_here
from .gallery import Gallery
from .refusals import Refused

Load = Callable[[Path], Engine]
"""Loads an engine file with the device, threads, streams and batching of the server."""


STREAMS = 2
"""Batches that a CPU computes at the same time. The threads of one batch wait for each other at every layer, so a
request that takes one core for a moment stops them all; with two batches, the other one goes on. Two cores of a Xeon
served 93 % of the engine's peak under overload, and 67 % with one."""


def load_for_requests(path: Path, threads: int | None, streams: int | None, batching: Batching) -> Engine:
    """``load`` with the threads and streams for a server: on a CPU what ``autotune`` found, and STREAMS at least."""
    file = read_engine(path)
    if default_device(file.manifest.backend, file.manifest.precision) == "cpu":
        setting = setting_here(file.tunings, "throughput") or Setting(available_threads(), STREAMS, CPU_BATCH)
        threads = threads or setting.threads
        streams = streams or min(threads, max(STREAMS, setting.streams))
    return open_engine(file, threads=threads, streams=streams, batching=batching)


def load_tested(load: Load, path: Path) -> Engine:
    """Load an engine and replay its golden pictures. Raises what ``load`` and ``Engine.self_test`` raise."""
    engine = load(path)
    try:
        engine.self_test()
    except CgdError:
        engine.close()
        raise
    return engine


class Model:
    """A name that requests give, the engine behind it, and the gallery that the engine searches.

    load   loads ``path`` again for ``reload``
    """

    def __init__(self, name: str, path: Path, engine: Engine, load: Load, gallery: Gallery | None = None) -> None:
        self.name = name
        self.path = path
        self.gallery = gallery
        self._load = load
        self._use = _Use(engine)
        self._reloading = False

    @property
    def engine(self) -> Engine:
        """The engine at this moment. Requests take it from ``used`` instead."""
        return self._use.engine

    @contextmanager
    def used(self) -> Iterator[Engine]:
        """Yield the engine, which stays open until the block ends, even if it is replaced meanwhile."""
        use = self._use
        use.count += 1
        use.idle.clear()
        try:
            yield use.engine
        finally:
            use.count -= 1
            if not use.count:
                use.idle.set()

    @property
    def facts(self) -> dict[str, str | int]:
        """What the engine is."""
        engine = self.engine
        return {
            "space_id": engine.spec.space_id,
            "dim": engine.spec.dim,
            "precision": engine.precision.value,
            "backend": engine.manifest.backend,
            "device": engine.device,
        }

    async def reload(self) -> None:
        """Load the engine file again, replay its golden pictures, replace the engine, and close the old one.

        New requests get the new engine as soon as it is ready. The old engine finishes its requests. Both are in memory
        meanwhile. Raises Refused, and keeps the old engine, if the file cannot be used, if the gallery belongs to
        another space than the new engine, or if another reload is running.
        """
        if self._reloading:
            raise Refused(HTTPStatus.CONFLICT, f"{self.name} is being reloaded already; ask again when that is done.")
        self._reloading = True
        try:
            engine = await asyncio.to_thread(self._tested)
            old, self._use = self._use, _Use(engine)
        finally:
            self._reloading = False
        await old.idle.wait()
        await asyncio.to_thread(old.engine.close)

    def _tested(self) -> Engine:
        try:
            engine = load_tested(self._load, self.path)
            try:
                if self.gallery:
                    self.gallery.check(engine)
            except CgdError:
                engine.close()
                raise
        except CgdError as error:
            raise Refused(HTTPStatus.CONFLICT, f"{self.name} was not replaced: {error}") from error
        return engine


class _Use:
    """An engine, how many requests use it, and the event that nobody does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()


class Models:
    """The models of a server; the first one answers requests that name none."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._of = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._of.values())

    def named(self, name: str | None) -> Model:
        """The model of a name. Raises Refused for an unknown name."""
        if name is None:
            return next(iter(self))
        if name not in self._of:
            raise Refused(HTTPStatus.NOT_FOUND, f"model {name!r} is unknown; {closest_known(name, list(self._of))}.")
        return self._of[name]

    def searched(self, name: str | None) -> tuple[Model, Gallery]:
        """The model of a name with its gallery; without a name, the first model with a gallery.

        Raises Refused for an unknown name, or if there is no gallery.
        """
        model = next((one for one in self if one.gallery), self.named(None)) if name is None else self.named(name)
        if model.gallery is None:
            raise Refused(
                HTTPStatus.NOT_FOUND, f"{model.name} has no gallery to search; start the server with --index FILE."
            )
        return model, model.gallery

    async def close(self) -> None:
        """Finish the submitted pictures, write changed galleries, and free the engines."""
        for model in self:
            if model.gallery:
                await model.gallery.save()
            await asyncio.to_thread(model.engine.close)
