"""Engines by name, and a new engine that takes the place of an old one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine
from served import SOON, jpeg, running, until

from cgd_deploy import load, read_index

pytest.importorskip("fastapi", reason="the server is not installed")

from cgd_deploy.serving.server.models import Model, Models
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
