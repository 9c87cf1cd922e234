"""Health, documentation, metrics and the access log."""

from __future__ import annotations

import json
import logging
import re

import pytest
from conftest import FAKE_SPEC
from served import jpeg

PICTURE = jpeg(0)


def values(text: str) -> dict[str, float]:
    """The samples of Prometheus's text form."""
    parser = pytest.importorskip("prometheus_client.parser")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_server_is_alive_and_ready(serving):
    client = serving()
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "models": ["fake"]}


def test_the_metrics_are_those_of_the_engine(serving):
    client = serving()
    for content in (PICTURE, PICTURE, b"no picture"):
        client.post("/embed", content=content)
    found = values(client.get("/metrics").text)
    model, embed = ("model", "fake"), ("route", "/embed")
    assert found["cgd_pictures_total", model, ("outcome", "described")] == 2
    assert found["cgd_pictures_total", model, ("outcome", "bad_picture")] == 1
    assert found["cgd_pictures_total", model, ("outcome", "shed")] == 0
    assert found["cgd_queue_pictures", model] == 0
    assert found["cgd_batch_pictures_count", model] == 2
    assert found["cgd_batch_pictures_bucket", ("le", "1.0"), model] == 2
    assert found["cgd_stage_seconds_count", model, ("stage", "decode")] == 3
    assert found["cgd_stage_seconds_bucket", ("le", "+Inf"), model, ("stage", "queue")] == 2
    assert found["cgd_http_requests_total", embed, ("status", "200")] == 2
    assert found["cgd_http_requests_total", embed, ("status", "422")] == 1
    assert found["cgd_http_request_seconds_count", embed] == 3
    [info] = [dict(name[1:]) for name in found if name[0] == "cgd_engine_info"]
    assert info == {
        "model": "fake",
        "space_id": FAKE_SPEC.space_id,
        "precision": "fp32",
        "backend": "fake",
        "device": "cpu",
        "dim": "24",
    }


def test_buckets_are_cumulative(serving):
    client = serving()
    for _ in range(3):
        client.post("/embed", content=PICTURE)
    [model] = client.app.state.service.models
    counts = model.engine.stats().seconds["decode"]
    found = values(client.get("/metrics").text)
    for number, bound in enumerate(counts.bounds):
        key = ("cgd_stage_seconds_bucket", ("le", str(float(bound))), ("model", "fake"), ("stage", "decode"))
        assert found[key] == sum(counts.counts[: number + 1])


def test_unknown_paths_are_one_time_series(serving):
    client = serving()
    for path in ("/a", "/b"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].startswith(f"GET {path}: Not Found")
    found = values(client.get("/metrics").text)
    assert found["cgd_http_requests_total", ("route", "unknown"), ("status", "404")] == 2


def test_another_method_is_refused_with_those_that_are_allowed(serving):
    answer = serving().get("/embed")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


def test_the_documentation_loads_nothing_from_elsewhere(serving):
    client = serving()
    page = client.get("/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert assets
    assert all(asset.startswith("/") and client.get(asset).status_code == 200 for asset in assets)
    schema = client.get("/openapi.json").json()
    routes = {"/embed", "/search", "/v1/embeddings", "/v1/models", "/livez", "/readyz", "/metrics", "/index/{path}"}
    assert routes <= set(schema["paths"])
    body = schema["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"input", "model", "encoding_format", "dimensions"} == set(body["properties"])
    assert "image/*" in schema["paths"]["/embed"]["post"]["requestBody"]["content"]


def test_the_page_loads_nothing_from_elsewhere(serving):
    page = serving().get("/").text
    assert "<title>" in page
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page)


def test_each_request_is_one_line_of_json(serving, caplog):
    client = serving()
    with caplog.at_level(logging.INFO, "cgd_deploy.access"):
        answer = client.post("/embed?model=fake", content=PICTURE)
    [line] = [record.getMessage() for record in caplog.records if record.name == "cgd_deploy.access"]
    told = json.loads(line)
    assert told["ms"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", told["time"])
    assert (told["client"], told["method"], told["path"]) == ("testclient", "POST", "/embed")
    assert (told["status"], told["bytes"]) == (200, len(answer.content))


def test_pages_of_an_origin_may_ask_if_the_server_says_so(serving):
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in serving().options("/embed", headers=asked).headers
    answer = serving(cors_origins=("https://shop.example",)).options("/embed", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


def test_a_wrong_argument_is_told_in_one_sentence(serving):
    answer = serving().post("/search?k=0", content=PICTURE)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("k cannot be used: ")
