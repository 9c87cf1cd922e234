"""Routes that describe pictures: the descriptors are the engine's, in every form of request and answer."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from conftest import FAKE_SPEC
from served import jpeg

from cgd_deploy import load

PICTURES = [jpeg(seed) for seed in range(3)]


@pytest.fixture
def expected(fake_engine):
    with load(fake_engine) as engine:
        return engine.embed(PICTURES)


def same(rows, expected) -> bool:
    """Equal but for the rounding of batches of other sizes."""
    rows = np.array(rows, np.float32)
    return rows.shape == expected.shape and np.allclose(rows, expected, atol=1e-6)


def data_url(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()


def files(pictures):
    return [("files", (f"{number}.jpg", picture, "image/jpeg")) for number, picture in enumerate(pictures)]


def test_a_raw_picture_gives_its_descriptor_and_the_space(serving, expected):
    answer = serving().post("/embed", content=PICTURES[0], headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["model"], told["space_id"]) == ("fake", FAKE_SPEC.space_id)
    assert same(told["descriptors"], expected[:1])


def test_a_form_gives_a_descriptor_for_each_file_in_order(serving, expected):
    answer = serving().post("/embed", files=files(PICTURES))
    assert same(answer.json()["descriptors"], expected)


def test_float32_rows_come_back_if_the_request_accepts_them(serving, expected):
    answer = serving().post("/embed", files=files(PICTURES), headers={"Accept": "application/octet-stream"})
    assert answer.headers["X-Space-Id"] == FAKE_SPEC.space_id
    shape = tuple(map(int, answer.headers["X-Shape"].split(",")))
    assert same(np.frombuffer(answer.content, "<f4").reshape(shape), expected)


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("written", [data_url, lambda picture: base64.b64encode(picture).decode()])
def test_openai_s_form_takes_data_urls_and_base64(serving, expected, encoding, written):
    body = {"input": [written(picture) for picture in PICTURES], "model": "fake", "encoding_format": encoding}
    told = serving().post("/v1/embeddings", json=body).json()
    assert (told["object"], told["model"], told["space_id"]) == ("list", "fake", FAKE_SPEC.space_id)
    assert [one["index"] for one in told["data"]] == [0, 1, 2]
    rows = [
        one["embedding"] if encoding == "float" else np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
        for one in told["data"]
    ]
    assert same(rows, expected)


def test_one_input_needs_no_list(serving, expected):
    told = serving().post("/v1/embeddings", json={"input": data_url(PICTURES[0])}).json()
    assert same(told["data"][0]["embedding"], expected[0])


def test_numbers_have_no_more_digits_than_float32_needs(serving):
    answer = serving().post("/embed", content=PICTURES[0])
    assert all(len(text) <= 16 for text in json.dumps(answer.json()["descriptors"][0]).split(", "))


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"input": []}, 422, "has 0 pictures"),
        ({"input": ["!"]}, 422, r"input\[0\] cannot be used: '!' is not a picture"),
        ({"input": [data_url(PICTURES[0]), 3]}, 422, r"input\[1\] cannot be used"),
        ({"input": "https://example.com/a.jpg"}, 422, "pictures elsewhere are not fetched"),
        ({"input": data_url(b"")}, 422, "picture 0 is empty"),
        ({"input": [data_url(PICTURES[0]), data_url(b"no picture")]}, 422, "picture 1 cannot be decoded"),
        ({"input": data_url(PICTURES[0]), "model": "fakes"}, 404, "the closest known ones are fake"),
        ({"input": data_url(PICTURES[0]), "dimensions": 5}, 422, "expected 24"),
        ({"input": data_url(PICTURES[0]), "encoding_format": "int8"}, 422, "encoding_format cannot be used"),
        ({}, 422, "input cannot be used: Field required"),
        ([1], 422, "the body cannot be used"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(serving, body, status, told):
    import re

    answer = serving().post("/v1/embeddings", json=body)
    assert answer.status_code == status
    assert re.search(told, answer.json()["error"]["message"]), answer.json()


def test_damaged_json_is_refused(serving):
    answer = serving().post("/v1/embeddings", content=b'{"input"', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "the body cannot be used" in answer.json()["error"]["message"]


def test_the_models_tell_what_they_are(serving):
    [told] = serving().get("/v1/models").json()["data"]
    assert told["id"] == "fake"
    assert (told["space_id"], told["dim"], told["precision"]) == (FAKE_SPEC.space_id, FAKE_SPEC.dim, "fp32")
    assert told["gallery"] is None


def test_the_stages_of_a_request_are_timed(serving):
    timing = serving().post("/embed", content=PICTURES[0]).headers["Server-Timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["decode", "queue", "compute"]
