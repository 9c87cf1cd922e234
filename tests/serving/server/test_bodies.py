"""Bodies: their size and type, and what is in them."""

from __future__ import annotations

import pytest
from served import jpeg

PICTURE = jpeg(0)


def chunks(count: int):
    for _ in range(count):
        yield b"x" * 1000


def test_a_body_that_tells_its_size_is_refused_unread(serving):
    answer = serving(max_body=100).post("/embed", content=PICTURE)
    assert answer.status_code == 413
    assert "more than 100 bytes" in answer.json()["error"]["message"]
    assert answer.headers["Connection"] == "close"


def test_a_body_that_does_not_tell_its_size_is_refused_at_the_limit(serving):
    answer = serving(max_body=2500).post("/embed", content=chunks(5))
    assert answer.status_code == 413


def test_a_body_of_exactly_the_limit_is_read(serving):
    assert serving(max_body=len(PICTURE)).post("/embed", content=PICTURE).status_code == 200


@pytest.mark.parametrize("kind", ["image/jpeg", "IMAGE/JPEG; q=1", "application/octet-stream", ""])
def test_a_picture_may_have_these_types(serving, kind):
    assert serving().post("/embed", content=PICTURE, headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize(
    ("route", "kind"), [("/embed", "text/html"), ("/embed", "application/json"), ("/v1/embeddings", "image/jpeg")]
)
def test_other_types_are_refused(serving, route, kind):
    answer = serving().post(route, content=PICTURE, headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert kind in answer.json()["error"]["message"]


def test_too_many_files_are_refused(serving):
    files = [("files", (f"{number}.jpg", PICTURE)) for number in range(3)]
    answer = serving(max_pictures=2).post("/embed", files=files)
    assert answer.status_code == 422


def test_too_many_inputs_are_refused(serving):
    import base64

    body = {"input": [base64.b64encode(PICTURE).decode()] * 3}
    answer = serving(max_pictures=2).post("/v1/embeddings", json=body)
    assert answer.status_code == 422
    assert "send 1 to 2" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_damaged_form_is_refused(serving, kind):
    answer = serving().post("/embed", content=b"--y\r\nno form", headers={"Content-Type": kind})
    assert answer.status_code == 422


def test_a_form_without_files_is_refused(serving):
    answer = serving().post("/embed", data={"a": "b"}, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 422


def test_an_empty_body_is_refused(serving):
    answer = serving().post("/embed", content=b"")
    assert answer.status_code == 422
    assert "is empty" in answer.json()["error"]["message"]
