"""Fixtures: a server in this process whose engine can be held, and a gallery; and JPEG files to send."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cgd_deploy import Batching, load, read_images
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.search.index import Index, index_images, write_index

SOON = 10


def jpeg(seed: int, size: tuple[int, int] = (40, 48)) -> bytes:
    """A JPEG file whose colours depend on ``seed``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


class Gate:
    """Holds every batch of the fake backend while it is shut."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)

    def shut(self) -> None:
        """Hold the next batches until ``open`` is set; ``entered`` counts them."""
        self.open.clear()
        self.entered = threading.Semaphore(0)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, run = Gate(), FakeBackend.run

    def held(self: FakeBackend, images: np.ndarray) -> np.ndarray:
        gate.entered.release()
        assert gate.open.wait(SOON)
        return run(self, images)

    monkeypatch.setattr(FakeBackend, "run", held)
    yield gate
    gate.open.set()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of eight JPEG files, jpeg(0) to jpeg(7)."""
    folder = tmp_path / "photos-in-a-folder-whose-name-is-longer-than-a-phone-is-wide"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture
def index_file(fake_engine: Path, photos: Path, tmp_path: Path) -> Path:
    """The index of ``photos``."""
    with load(fake_engine) as engine:
        return write_index(index_images(engine, read_images([str(photos)])), tmp_path / "gallery.npy")


@pytest.fixture
def serving(fake_engine: Path) -> Iterator[Callable[..., Any]]:
    """Start a server with ``fake_engine`` and these settings; returns a client that asks it.

    index      its gallery
    batching   of the engine
    """
    pytest.importorskip("fastapi", reason="the server is not installed")
    from fastapi.testclient import TestClient

    from cgd_deploy.serving.server.app import create_app
    from cgd_deploy.serving.server.gallery import Gallery
    from cgd_deploy.serving.server.models import Model, Models
    from cgd_deploy.serving.server.service import Service
    from cgd_deploy.serving.server.settings import ServerSettings

    models: list[Model] = []
    clients = ExitStack()

    def start(index: Index | None = None, batching: Batching | None = None, **settings: Any) -> TestClient:
        def opener(path: Path) -> Any:
            return load(path, batching=batching)

        gallery = Gallery(fake_engine.with_name("gallery.npy"), index) if index is not None else None
        models.append(Model("fake", fake_engine, opener(fake_engine), opener, gallery))
        service = Service(ServerSettings(**settings))
        service.models = Models([models[-1]])
        client = TestClient(create_app(service), raise_server_exceptions=False)
        return clients.enter_context(client)  # inside, all its requests share one event loop, as in a server

    with clients:
        yield start
    for model in models:
        model.engine.close(drain=False)


@contextmanager
def running(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run ``call`` in a thread while the block runs; its result is in the list afterwards."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    try:
        yield found
    finally:
        thread.join(SOON)
        assert not thread.is_alive()


def until(holds: Callable[[], bool], seconds: float = SOON) -> None:
    """Wait until ``holds``; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)
