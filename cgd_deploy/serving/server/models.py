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
from ...runtime.engine import Engine
from .gallery import Gallery
from .refusals import Refused

Load = Callable[[Path], Engine]
"""Loads an engine file with the device, threads, streams and batching of the server."""


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
