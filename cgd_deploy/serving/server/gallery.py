"""The gallery of a server: searched, changed and written while requests run."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from pathlib import Path

from ...errors import CgdError, InputError, install_line
from ...runtime.descriptors import Descriptor, Descriptors
from ...runtime.engine import Engine
from ...search.index import Index, write_index
from ...search.paths import index_names, paths_from_here
from .refusals import Refused

log = logging.getLogger(__name__)


class Gallery:
    """An index, and the file that it is read from and written to.

    ``find``, ``put`` and ``remove`` compute in threads, so the event loop goes on meanwhile.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self.index = index
        self._writing = asyncio.Lock()

    def check(self, engine: Engine) -> None:
        """Raise InputError if ``engine`` describes another space; log unsafe precisions, and a missing usearch."""
        if self.index.slow:
            log.warning("%s is searched slowly without usearch 2.25; run `%s`.", self.path, install_line("search"))
        mixing = self.index.mixing(engine)
        if mixing and not mixing.safe:
            log.warning("%s: %s.", self.path, mixing.told)

    async def find(self, engine: Engine, queries: Descriptors, k: int) -> list[list[tuple[str, float]]]:
        """The paths and cosines of the ``k`` nearest pictures of each query; fewer if the gallery has fewer."""
        return await asyncio.to_thread(self.index.find, engine, queries, k)

    def listed(self, path: str) -> str:
        """The path as ``read_index`` gives it: so a picture keeps its path when the server is started again.

        Raises Refused for an empty path.
        """
        if not path:
            raise Refused(HTTPStatus.NOT_FOUND, "the path of the picture is missing; ask for /index/PATH.")
        folder, rule = self.path.parent, self.index.paths_are
        [found] = paths_from_here(index_names([path], folder, rule), folder, rule)
        return found

    async def put(self, path: str, descriptor: Descriptor) -> None:
        """Add a picture, or replace its descriptor."""
        await asyncio.to_thread(self.index.put, path, descriptor)

    async def remove(self, path: str) -> None:
        """Raises Refused if the gallery has no such picture."""
        try:
            await asyncio.to_thread(self.index.remove, path)
        except InputError as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from error

    async def save(self) -> None:
        """Write the index if it was changed, without its graph. A failure is logged, and the next call tries again."""
        async with self._writing:
            if not self.index.changed:
                return
            try:
                await asyncio.to_thread(write_index, self.index, self.path)
            except CgdError as error:
                log.error("the changed gallery was not written: %s", error)
                return
            if self.index.moment.graph:
                log.warning("%s was written without a graph; `cgd-deploy embed --update --ann` builds one.", self.path)

    async def keep_saving(self, seconds: float) -> None:
        """Write changes every so many seconds, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.save()
