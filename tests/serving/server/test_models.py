"""Engines by name, and a new engine that takes the place of an old one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from conftest import FAKE_SPEC, TUNING, write_fake_engine
from served import SOON, jpeg, running, until

from cgd_deploy import Batching, load, read_index
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.runtime.tuning import this_machine, write_tuning

pytest.importorskip("fastapi", reason="the server is not installed")

from cgd_deploy.serving.server.models import Model, Models, load_for_requests
from cgd_deploy.serving.server.refusals import Refused
from cgd_deploy.serving.server.settings import Keys

PICTURE = jpeg(0)
BOSS = {"Authorization": "Bearer boss"}
KEYS = Keys(users=(), admins=(b"boss",))


@pytest.fixture
def models(fake_engine):
    engines = [load(fake_engine) for _ in range(2)]
    yield Models([Model(name, fake_engine, engine, load) for name, engine in zip("ab", engines, strict=True)])
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(
    ("cores", "tuned", "asked", "expected"),
    [
        (4, None, (None, None), (4, 2)),
        (1, None, (None, None), (1, 1)),
        (8, (6, 3), (None, None), (6, 3)),
        (8, (6, 1), (None, None), (6, 2)),
        (8, (6, 3), (2, None), (2, 2)),
        (8, (6, 3), (None, 1), (6, 1)),
    ],
)
def test_threads_and_streams_of_a_server(fake_engine, monkeypatch, cores, tuned, asked, expected):
    """``cores`` of this machine, the threads and streams that autotune found, and those that the user asks for."""
    for module in ("cgd_deploy.runtime.tuning", "cgd_deploy.serving.server.models"):
        monkeypatch.setattr(f"{module}.available_threads", lambda: cores)
    if tuned:
        found = dict(zip(("threads", "streams"), tuned, strict=True))
        tuning = {**TUNING, "machine": this_machine(), "throughput": {**found, "batch": 8}}
        write_tuning(fake_engine, read_engine(fake_engine).manifest_sha256, tuning)
    opened = []
    monkeypatch.setattr("cgd_deploy.serving.server.models.open_engine", lambda _, **settings: opened.append(settings))
    load_for_requests(fake_engine, *asked, Batching())
    assert (opened[0]["threads"], opened[0]["streams"]) == expected


def test_streams_of_a_server_on_a_gpu_are_those_of_load(fake_engine, monkeypatch):
    opened = []
    monkeypatch.setattr("cgd_deploy.serving.server.models.default_device", lambda *_: "cuda")
    monkeypatch.setattr("cgd_deploy.serving.server.models.open_engine", lambda _, **settings: opened.append(settings))
    load_for_requests(fake_engine, None, None, Batching())
    assert (opened[0]["threads"], opened[0]["streams"]) == (None, None)


def test_the_first_model_answers_requests_without_a_name(models):
    assert models.named(None).name == "a"
    assert models.named("b").name == "b"
    with pytest.raises(Refused, match="'c' is unknown"):
        models.named("c")


def test_a_search_without_a_name_goes_to_the_model_with_a_gallery(models):
    with pytest.raises(Refused, match="no gallery"):
        models.searched(None)
    models.named("b").gallery = object()
    assert models.searched(None)[0].name == "b"
    with pytest.raises(Refused, match="a has no gallery"):
        models.searched("a")


def test_a_reload_takes_the_new_file_and_closes_the_old_engine(serving, fake_engine):
    client = serving(keys=KEYS)
    [model] = client.app.state.service.models
    old = model.engine
    write_fake_engine(fake_engine, replace(FAKE_SPEC, dim=30, space_id="fedcba9876543210"))
    answer = client.post("/admin/reload?model=fake", headers=BOSS)
    assert (answer.status_code, answer.json()["dim"], answer.json()["space_id"]) == (200, 30, "fedcba9876543210")
    assert model.engine is not old
    assert "closed" in repr(old)
    assert len(client.post("/embed", content=PICTURE, headers=BOSS).json()["descriptors"][0]) == 30
    model.engine.close()


def test_a_reload_loses_no_request(serving, gate):
    client = serving(keys=KEYS)
    [model] = client.app.state.service.models
    old = model.engine
    gate.shut()
    with running(lambda: client.post("/embed", content=PICTURE, headers=BOSS)) as held:
        assert gate.entered.acquire(timeout=SOON)
        with running(lambda: client.post("/admin/reload", headers=BOSS)) as reloaded:
            assert gate.entered.acquire(timeout=SOON)  # the new engine replays its golden pictures
            assert model.engine is old
            gate.open.set()
    assert (held[0].status_code, reloaded[0].status_code) == (200, 200)
    assert model.engine is not old
    model.engine.close()


def test_an_engine_in_use_is_not_closed(fake_engine):
    async def run() -> None:
        model = Model("a", fake_engine, load(fake_engine), load)
        with model.used() as old:
            task = asyncio.create_task(model.reload())
            while model.engine is old:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert not task.done()
            assert old.embed([PICTURE]).shape == (1, FAKE_SPEC.dim)
        await task
        assert "closed" in repr(old)
        model.engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["missing", "cut", "golden"])
def test_a_bad_file_leaves_the_old_engine_in_place(serving, fake_engine, damage, monkeypatch):
    client = serving(keys=KEYS)
    if damage == "missing":
        fake_engine.unlink()
    elif damage == "cut":
        fake_engine.write_bytes(fake_engine.read_bytes()[:-100])
    else:
        monkeypatch.setattr("cgd_deploy.runtime.engine.cosines", lambda *_: np.zeros(3))
    answer = client.post("/admin/reload", headers=BOSS)
    assert answer.status_code == 409
    assert "fake was not replaced" in answer.json()["error"]["message"]
    assert client.post("/embed", content=PICTURE, headers=BOSS).status_code == 200


def test_an_engine_of_another_space_than_the_gallery_is_refused(serving, fake_engine, index_file):
    client = serving(read_index(index_file), keys=KEYS)
    write_fake_engine(fake_engine, replace(FAKE_SPEC, space_id="fedcba9876543210"))
    answer = client.post("/admin/reload", headers=BOSS)
    assert answer.status_code == 409
    assert "the index describes space" in answer.json()["error"]["message"]


def test_one_reload_at_a_time(serving, gate):
    client = serving(keys=KEYS)
    [model] = client.app.state.service.models
    gate.shut()
    with running(lambda: client.post("/admin/reload", headers=BOSS)) as first:
        assert gate.entered.acquire(timeout=SOON)
        assert client.post("/admin/reload", headers=BOSS).status_code == 409
        gate.open.set()
    assert first[0].status_code == 200
    until(lambda: model.engine.stats().waiting == 0)
    model.engine.close()
