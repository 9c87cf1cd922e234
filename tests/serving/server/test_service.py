"""Who may ask, how much is admitted, and what happens to pictures of requests that fail."""

from __future__ import annotations

import time

import pytest
from served import SOON, jpeg, running, until

from cgd_deploy import Batching
from cgd_deploy.serving.server.settings import Keys

PICTURE = jpeg(0)
KEYS = Keys(users=(b"user",), admins=(b"boss",))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def stats(client):
    [model] = client.app.state.service.models
    return model.engine.stats()


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer("usér"), {"Authorization": "Basic user"}])
@pytest.mark.parametrize("route", ["/embed", "/search", "/v1/embeddings"])
def test_a_server_with_keys_answers_nobody_else(serving, headers, route):
    answer = serving(keys=KEYS).post(route, content=PICTURE, headers={k: v.encode() for k, v in headers.items()})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_health_needs_no_key_and_the_rest_does(serving):
    client = serving(keys=KEYS)
    assert {route: client.get(route).status_code for route in ("/livez", "/readyz", "/", "/metrics", "/v1/models")} == {
        "/livez": 200,
        "/readyz": 200,
        "/": 200,
        "/metrics": 401,
        "/v1/models": 401,
    }


@pytest.mark.parametrize("key", ["user", "boss"])
def test_a_key_opens_the_server(serving, key):
    assert serving(keys=KEYS).post("/embed", content=PICTURE, headers=bearer(key)).status_code == 200


def test_only_an_admin_may_change_the_server(serving):
    client = serving(keys=KEYS)
    assert client.post("/admin/reload", headers=bearer("user")).status_code == 403
    assert client.post("/admin/reload", headers=bearer("boss")).status_code == 200
    assert client.delete("/index/a.jpg", headers=bearer("user")).status_code == 403


def test_without_keys_nobody_may_change_the_server(serving):
    client = serving()
    assert client.post("/admin/reload").status_code == 403
    assert client.put("/index/a.jpg", content=PICTURE).status_code == 403


def test_a_full_queue_is_answered_with_503_and_leaves_nothing_behind(serving, gate):
    client = serving(batching=Batching(max_batch=1, max_queue=2))
    gate.shut()
    with running(lambda: client.post("/embed", content=PICTURE)) as first:
        assert gate.entered.acquire(timeout=SOON)
        answer = client.post("/embed", files=[("files", ("a.jpg", PICTURE))] * 3)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert stats(client).pictures["shed"] == 1
        until(lambda: stats(client).waiting == 0)  # the two admitted pictures of the refused request are gone
        gate.open.set()
    assert first[0].status_code == 200


def test_more_requests_than_allowed_are_refused_unread(serving, gate):
    client = serving(max_requests=1)
    gate.shut()
    with running(lambda: client.post("/embed", content=PICTURE)):
        assert gate.entered.acquire(timeout=SOON)
        answer = client.post("/embed", content=PICTURE)
        assert answer.status_code == 503
        assert "1 requests" in answer.json()["error"]["message"]
        gate.open.set()
    assert client.post("/embed", content=PICTURE).status_code == 200


def test_a_request_may_ask_for_less_time(serving, gate):
    client = serving(batching=Batching(max_batch=1))
    gate.shut()
    with running(lambda: client.post("/embed", content=PICTURE)) as first:
        assert gate.entered.acquire(timeout=SOON)
        with running(lambda: client.post("/embed", content=PICTURE, headers={"X-Timeout-Ms": "1"})) as second:
            time.sleep(0.05)
            gate.open.set()
    assert (first[0].status_code, second[0].status_code) == (200, 503)
    assert "timeout of 1.0 ms" in second[0].json()["error"]["message"]


def test_a_request_may_not_ask_for_more_time_than_the_server_allows(serving, monkeypatch):
    client = serving(timeout_ms=5_000)
    [model] = client.app.state.service.models
    submit, timeouts = model.engine.submit, []
    monkeypatch.setattr(model.engine, "submit", lambda picture, ms: (timeouts.append(ms), submit(picture, ms))[1])
    for asked in ({}, {"X-Timeout-Ms": "60000"}, {"X-Timeout-Ms": "400"}):
        assert client.post("/embed", content=PICTURE, headers=asked).status_code == 200
    assert timeouts == [5_000, 5_000, 400]


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_a_timeout_that_is_none_is_refused(serving, text):
    answer = serving().post("/embed", content=PICTURE, headers={"X-Timeout-Ms": text})
    assert answer.status_code == 422


def test_a_failing_engine_is_a_bug_and_tells_nothing(serving, monkeypatch):
    from cgd_deploy.runtime.backends.fake import FakeBackend

    client = serving()
    monkeypatch.setattr(FakeBackend, "run", lambda *_: 1 / 0)
    answer = client.post("/embed", content=PICTURE)
    assert answer.status_code == 500
    assert answer.json()["error"] == {"message": "the server failed; its log says why.", "type": "ZeroDivisionError"}


def test_everything_but_life_waits_for_the_engines(serving):
    client = serving()
    client.app.state.service.models = None
    assert client.get("/livez").status_code == 200
    for answer in (client.get("/readyz"), client.get("/v1/models"), client.post("/embed", content=PICTURE)):
        assert answer.status_code == 503
        assert "being loaded" in answer.json()["error"]["message"]
