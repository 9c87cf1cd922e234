"""examples/service.py as a client sees it; the programs in C and C++ are test_native.py's."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_fake_engine

from cgd_deploy import load
from cgd_deploy.search.index import index_images, write_index

SERVICE = Path(__file__).resolve().parents[2] / "examples" / "service.py"


@pytest.fixture(scope="module")
def service(picture_list, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    path = write_fake_engine(folder / "fake.cgd")
    with load(path) as engine:
        write_index(index_images(engine, picture_list), folder / "index.npy")
    command = [sys.executable, SERVICE, path, folder / "index.npy", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        yield f"http://localhost:{process.stdout.readline().split()[-1]}/"
        process.terminate()


def ask(url: str, data: bytes) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(url, data, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_picture_finds_itself_first(service, picture_list):
    for path in picture_list.paths[:3]:
        status, found = ask(f"{service}?k=2", path.read_bytes())
        assert status == 200 and len(found) == 2
        assert found[0] == {"path": str(path), "similarity": pytest.approx(1.0, abs=1e-4)}


@pytest.mark.parametrize(
    ("query", "data", "words"),
    [("", b"no picture", "cannot be decoded"), ("?k=x", b"", "k as a number"), ("?k=1000", None, "neighbours")],
)
def test_what_cannot_be_answered_is_told(service, picture_list, query, data, words):
    status, found = ask(service + query, picture_list.paths[0].read_bytes() if data is None else data)
    assert status == 400 and words in found["error"]
