"""What only the library that runs Python has: its threads and futures, seen from Python, and how it is built."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC
from native_build import EXAMPLES, NEEDS_NATIVE, ROOT, compiled, needs_pkg_config, run
from native_ctypes import Library, Submitted, image

from cgd_deploy import DeadlineExceeded, InputError, load
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime import engine as engine_module
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.search.index import index_images, read_index, write_index
from cgd_deploy.serving.native import embedded, install
from cgd_deploy.serving.native.hostlog import LOGGER

pytestmark = NEEDS_NATIVE
SANITIZED = ("-g", "-fsanitize=address,undefined")


@pytest.fixture(scope="module")
def prefix(python_prefix: Path) -> Path:
    return python_prefix


@pytest.fixture
def fake(library: Library, fake_engine: Path) -> Iterator[ctypes.c_void_p]:
    with library.opened(fake_engine) as engine:
        yield engine


@pytest.mark.parametrize("count", [1, 3])
def test_close_waits_for_calls_of_other_threads(library, fake_engine, monkeypatch, count):
    """C may free its buffers once close has returned."""
    status, handle = library.open(fake_engine)
    engine = embedded._engines[max(embedded._engines)]
    run, entered, go, events = engine._backend.run, threading.Event(), threading.Event(), []

    def slow(images: np.ndarray) -> np.ndarray:
        entered.set()
        assert go.wait(10)
        found = run(images)
        events.append("computed")
        return found

    monkeypatch.setattr(engine._backend, "run", slow)
    monkeypatch.setattr(engine._backend, "close", lambda: events.append("freed"))
    images = [image(row) for row in golden_images(FAKE_SPEC, count)]
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(library.describe, handle, images)
        assert entered.wait(10)
        closing = pool.submit(library.engine_close, handle)
        while not engine._calls.closed:
            pass
        go.set()
        status, found = running.result(10)
        closing.result(10)
    assert (status, events) == ("CGD_OK", ["computed", "freed"]) and not (found == 7).any()


@pytest.mark.parametrize("count", [1, 3])
def test_a_call_that_comes_after_close_is_told(library, fake_engine, picture_list, tmp_path, capfd, count):
    _, handle = library.open(fake_engine)
    with load(fake_engine) as engine:
        _, index = library.open_index(write_index(index_images(engine, picture_list), tmp_path / "index.npy"))
    embedded._engines.pop(max(embedded._engines)).close()  # as by a thread that closes while this one enters
    images = [image(row) for row in golden_images(FAKE_SPEC, count)]
    queries = np.zeros((1, 24), np.float32)
    for use in (
        lambda: library.describe(handle, images)[0],
        lambda: library.status(library.self_test(handle, None)),
        lambda: library.search_index(index, handle, queries, 1)[0],
    ):
        assert use() == "CGD_BAD_ENGINE" and "closed by another thread" in library.error
    library.engine_close(handle)
    library.index_close(index)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("running", [False, True], ids=["a thread may decode", "computed"])
def test_an_interrupted_call_ends_after_its_pixels_are_read(running):
    """In a host with a Python, Ctrl-C comes out of the wait for the result; a cancelled picture may still be read."""

    class Interrupted(Future):
        def result(self, timeout: float | None = None) -> object:
            events.append("waits")
            if events.count("waits") < 3:
                raise KeyboardInterrupt
            self.set_result(None)
            return super().result(timeout)

    events: list[str] = []
    future = Interrupted()
    if running:
        future.set_running_or_notify_cancel()
    with pytest.raises(KeyboardInterrupt):
        embedded._result(future)
    assert (future.cancelled(), future.done()) == (False, True)


def test_single_pictures_are_decoded_in_the_pool_of_the_engine(library, fake, pictures, monkeypatch):
    names = []

    def noted(picture, spec):
        names.append(threading.current_thread().name)
        return preprocess(picture, spec)

    monkeypatch.setattr(engine_module, "preprocess", noted)
    assert library.describe_files(fake, [(pictures / "kind-0" / "0.jpg").read_bytes()])[0] == "CGD_OK"
    assert library.describe_files(fake, [b"no picture at all"])[0] == "CGD_BAD_INPUT"
    assert "cannot be decoded" in library.error
    assert library.describe(fake, [image(np.zeros((40, 50, 3), np.uint8))])[0] == "CGD_OK"
    assert len(names) == 3 and all(name.startswith("cgd-deploy-decode") for name in names)


def test_a_late_picture_has_timed_out(library, fake, monkeypatch):
    def late(*_: object) -> Future:
        raise DeadlineExceeded("the picture was late.")

    monkeypatch.setattr(embedded.Engine, "submit", late)
    assert library.describe_files(fake, [b"a picture"])[0] == "CGD_TIMED_OUT" and "late" in library.error


def test_a_prefix_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another output path"):
        install.install_native(tmp_path / "file", embed_python=True)


def test_a_compiler_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/bin/false")
    done = subprocess.run(
        [sys.executable, "-m", "cgd_deploy", "install-native", "--embed-python", "--prefix", str(tmp_path / "p")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "install a C compiler" in done.stderr
    assert not (tmp_path / "p").exists()


@needs_pkg_config
def test_the_c_example_is_clean_under_addresssanitizer(prefix, fake_engine, pictures):
    """OpenVINO's threads refuse the sanitizer, so these two tests run the backend without a model."""
    program = compiled(prefix, EXAMPLES / "embed.c", "-std=c99", *SANITIZED)
    picture = pictures / "kind-0" / "0.jpg"
    assert "cosine 1.0" in run(program, fake_engine, picture, picture, ASAN_OPTIONS="detect_leaks=0")


@needs_pkg_config
def test_submitted_images_are_clean_under_addresssanitizer(prefix, fake_engine, tmp_path):
    source = shutil.copy(ROOT / "tests" / "data" / "native_host.c", tmp_path)
    host = compiled(prefix, Path(source), "-std=c99", "-pthread", *SANITIZED)
    assert run(host, fake_engine, "images", ASAN_OPTIONS="detect_leaks=0").endswith("handler\n")
    assert run(host, fake_engine, "detached", 100, ASAN_OPTIONS="detect_leaks=0") == ""


def test_free_waits_for_an_image_that_is_computed(library, fake, monkeypatch):
    backend = embedded._engines[max(embedded._engines)]._backend
    run_before, entered, go = backend.run, threading.Event(), threading.Event()

    def slow(images: np.ndarray) -> np.ndarray:
        entered.set()
        assert go.wait(10)
        return run_before(images)

    monkeypatch.setattr(backend, "run", slow)
    pixels = golden_images(FAKE_SPEC, 1)[0]
    one = Submitted(library, fake, image(pixels), lambda: None)
    assert entered.wait(10)
    with ThreadPoolExecutor(1) as pool:
        freeing = pool.submit(one.free)
        assert one.calls == [] and not freeing.done()
        go.set()
        freeing.result(10)
    assert [call[1] for call in one.calls] == ["CGD_OK"] and not (one.out == 7).any()


def test_the_pixels_of_a_freed_ticket_are_not_read(library, fake_engine, monkeypatch):
    """A thread that decodes does not stop when its picture is cancelled."""
    _, engine = library.open(fake_engine)
    decodes, go, seen = threading.Event(), threading.Event(), []

    def slow(picture: np.ndarray, spec: object) -> np.ndarray:
        decodes.set()
        assert go.wait(10)
        seen.append(picture.max())
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr(engine_module, "preprocess", slow)
    pixels = np.full((40, 50, 3), 5, np.uint8)
    one = Submitted(library, engine, image(pixels), lambda: None)
    assert decodes.wait(10)
    one.free()
    assert [call[1] for call in one.calls] == ["CGD_CANCELLED"]
    pixels[:] = 9
    go.set()
    library.engine_close(engine)
    assert seen == [5]


def test_the_ticket_is_there_when_done_is_called(library, fake, monkeypatch):
    class Watching(Submitted):
        def _done(self, *arguments: Any) -> None:
            seen.append(self.ticket.value)
            super()._done(*arguments)

    def slow(*arguments: Any) -> Future:
        future = submit(*arguments)
        assert called.wait(10)
        return future

    seen, called, submit = [], threading.Event(), embedded.Engine.submit
    monkeypatch.setattr(embedded.Engine, "submit", slow)
    one = Watching(library, fake, image(golden_images(FAKE_SPEC, 1)[0]), called.set)
    assert seen == [one.ticket.value] and seen[0]
    one.free()


def test_an_unexpected_error_has_its_status(library, fake, monkeypatch, capfd):
    def fails(images: np.ndarray) -> np.ndarray:
        raise RuntimeError("the backend\nbroke")

    monkeypatch.setattr(embedded._engines[max(embedded._engines)]._backend, "run", fails)
    pixels = golden_images(FAKE_SPEC, 1)[0]
    one = Submitted(library, fake, image(pixels), lambda: None)
    assert one.wait() == "CGD_INTERNAL" and one.calls == [(None, "CGD_INTERNAL", "the backend broke")]
    one.free()
    assert "RuntimeError" in capfd.readouterr().err and library.stats(fake).failed == 1


def test_finished_images_leave_nothing_behind(library, fake):
    pixels = golden_images(FAKE_SPEC, 1)[0]
    for _ in range(50):
        Submitted(library, fake, image(pixels)).free()
    done = Submitted(library, fake, image(pixels))
    assert done.wait() == "CGD_OK"
    done.free()
    (functions,) = [thing for thing in gc.get_objects() if type(thing) is embedded.Functions]
    assert functions._pending == {}


@pytest.mark.parametrize(("before", "during"), [("NOTSET", "INFO"), ("ERROR", "INFO"), ("DEBUG", "DEBUG")])
def test_the_log_of_a_host_with_a_python_keeps_its_level(library, monkeypatch, before, during):
    monkeypatch.setattr(LOGGER, "level", getattr(logging, before))
    for log in (lambda *_: None, lambda *_: None):
        kept = library.log_to(log, 2)
        assert kept and logging.getLevelName(LOGGER.level) == during
    library.log_to(None)
    assert logging.getLevelName(LOGGER.level) == before


def test_calls_inside_calls_leave_no_thread(library, fake_engine):
    """The library watches some calls in a thread of its own. ``done`` runs inside cgd_ticket_free here."""

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before, one = threads(), image(golden_images(FAKE_SPEC, 1)[0])
    _, engine = library.open(fake_engine, max_delay_ms=600_000.0)
    made: list[Submitted] = []
    first = Submitted(library, engine, one, lambda: made.append(Submitted(library, engine, one)))
    first.free()
    made[0].free()
    library.engine_close(engine)
    deadline = monotonic() + 10
    while threads() > before and monotonic() < deadline:
        sleep(0.01)
    assert threads() <= before


def test_an_index_of_parquet(library, fake, fake_engine, picture_list, tmp_path):
    with load(fake_engine) as engine:
        path = write_index(index_images(engine, picture_list), tmp_path / "index.parquet")
        queries = engine.embed(golden_images(FAKE_SPEC, 4))
        nearest, cosines = read_index(path).search(engine, queries, 7)
    status, index = library.open_index(path)
    assert (status, library.error) == ("CGD_OK", "")
    status, indices, scores = library.search_index(index, fake, queries, 7)
    assert status == "CGD_OK" and np.array_equal(indices, nearest) and np.array_equal(scores, cosines)
    library.index_close(index)
