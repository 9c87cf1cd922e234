"""The server as a process: how it starts, what clients find, and how it ends."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine
from served import SOON, jpeg, until

from cgd_deploy import load, read_index

pytest.importorskip("fastapi", reason="the server is not installed")
httpx = pytest.importorskip("httpx")

ROOT = Path(__file__).resolve().parents[3]
PICTURES = [jpeg(seed) for seed in range(3)]
SLOW = """
import time
from cgd_deploy.runtime.backends.fake import FakeBackend
run = FakeBackend.run
def slow(self, images):
    time.sleep({seconds})
    return run(self, images)
FakeBackend.run = slow
from cgd_deploy.cli.app import main
main()
"""
"""``cgd-deploy`` with a fake backend whose batches take a while."""


class Process:
    """A running ``cgd-deploy serve`` that writes to files in ``folder``."""

    def __init__(self, arguments: Sequence[object], folder: Path, seconds: float) -> None:
        command = [sys.executable, "-c", SLOW.format(seconds=seconds), "serve", "--port", "0", *map(str, arguments)]
        self._out, self._errors = folder / "out", folder / "errors"
        with self._out.open("wb") as out, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(command, stdout=out, stderr=errors, cwd=folder)
        until(lambda: "listening" in self.errors, 6 * SOON)
        [self.url] = re.findall(r"listening on (http://\S+);", self.errors)

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._errors.read_text(encoding="utf-8")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of its access log."""
        return [json.loads(line) for line in self._out.read_text(encoding="utf-8").splitlines()]

    def wait_until_ready(self) -> None:
        until(lambda: httpx.get(f"{self.url}/readyz").status_code == 200, 6 * SOON)

    def wait_for(self, pattern: str) -> None:
        """Wait until the metrics have a line like ``pattern``."""
        until(lambda: bool(re.search(pattern, httpx.get(f"{self.url}/metrics").text)))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(6 * SOON)


@contextmanager
def served(*arguments: object, seconds: float = 0.0, folder: Path | None = None) -> Iterator[Process]:
    with TemporaryDirectory() as temporary:
        made = Process(arguments, folder or Path(temporary), seconds)
        try:
            yield made
        finally:
            made.process.kill()
            made.process.wait()


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_engine(tmp_path_factory.mktemp("engine") / "fake.cgd")


@pytest.fixture(scope="module")
def server(engine_file: Path) -> Iterator[Process]:
    with served(engine_file) as process:
        process.wait_until_ready()
        yield process


def test_it_listens_on_this_machine_only(server):
    assert server.url.startswith("http://127.0.0.1:")


def test_openai_s_client_talks_to_it(server, engine_file):
    openai = pytest.importorskip("openai")
    urls = ["data:image/jpeg;base64," + base64.b64encode(picture).decode() for picture in PICTURES]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model="fake", input=urls)
        [model] = client.models.list().data
        with pytest.raises(openai.NotFoundError, match="'other' is unknown"):
            client.embeddings.create(model="other", input=urls)
        with pytest.raises(openai.UnprocessableEntityError, match="pictures elsewhere are not fetched"):
            client.embeddings.create(model="fake", input="a text")
    with load(engine_file) as engine:
        expected = engine.embed(PICTURES)
    assert np.allclose([one.embedding for one in found.data], expected, atol=1e-6)
    assert found.model_extra == {"space_id": FAKE_SPEC.space_id}
    assert model.id == "fake"


def test_the_connection_stays_open_for_the_next_request(server):
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=SOON)
    sockets = []
    for _ in range(2):
        connection.request("POST", "/embed", PICTURES[0])
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        sockets.append(connection.sock)
    assert sockets[0] is not None
    assert sockets[0] is sockets[1]
    connection.close()


def test_a_client_that_goes_away_frees_its_pictures(engine_file):
    with served(engine_file, "--max-batch", 1, seconds=0.3) as process:
        process.wait_until_ready()
        host, port = process.url.removeprefix("http://").split(":")
        files = [("files", (f"{number}.jpg", PICTURES[0])) for number in range(20)]
        body = httpx.Request("POST", f"{process.url}/embed", files=files)
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: {body.headers['Content-Type']}\r\n"
        with socket.create_connection((host, int(port)), timeout=SOON) as connection:
            content = body.read()
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            process.wait_for(r'cgd_queue_pictures{model="fake"} 1\d\.0')
        process.wait_for(r'cgd_queue_pictures{model="fake"} 0\.0')
        [cancelled] = re.findall(r'outcome="cancelled"} (\d+)', httpx.get(f"{process.url}/metrics").text)
        assert int(cancelled) >= 10


def test_a_signal_loses_no_admitted_picture(engine_file):
    with served(engine_file, "--max-batch", 1, seconds=0.05) as process:
        process.wait_until_ready()
        answers: list[object] = []

        def ask() -> None:
            try:
                answers.append(httpx.post(f"{process.url}/embed", content=PICTURES[0], timeout=SOON).status_code)
            except httpx.TransportError as error:
                answers.append(error)

        clients = [threading.Thread(target=ask) for _ in range(12)]
        for client in clients:
            client.start()
        process.wait_for(r'cgd_queue_pictures{model="fake"} ([5-9]|1\d)\.0')
        status = process.end()
        for client in clients:
            client.join(SOON)
        admitted = [line for line in process.lines if line["path"] == "/embed"]
        assert status == 0
        assert len(admitted) >= 6
        assert all(line["status"] == 200 for line in admitted)
        assert answers.count(200) == len(admitted)
        assert "Traceback" not in process.errors


def test_reloads_under_load_lose_no_request(engine_file, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("boss admin", encoding="utf-8")
    headers = {"Authorization": "Bearer boss"}
    with served(engine_file, "--api-keys", keys, seconds=0.01) as process:
        process.wait_until_ready()
        statuses: list[int] = []
        over = threading.Event()

        def ask() -> None:
            with httpx.Client(headers=headers, timeout=SOON) as client:
                while not over.is_set():
                    statuses.append(client.post(f"{process.url}/embed", content=PICTURES[0]).status_code)

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        for _ in range(5):
            answer = httpx.post(f"{process.url}/admin/reload", headers=headers, timeout=SOON)
            assert answer.status_code == 200
        over.set()
        for client in clients:
            client.join(SOON)
        assert len(statuses) > 20
        assert set(statuses) == {200}


def test_a_large_body_is_refused_before_it_is_sent(server):
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=SOON) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_a_changed_gallery_is_written_at_the_end(engine_file, index_file, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("boss admin", encoding="utf-8")
    with served(engine_file, "--index", index_file, "--api-keys", keys) as process:
        process.wait_until_ready()
        headers = {"Authorization": "Bearer boss"}
        answer = httpx.put(f"{process.url}/index/new.jpg", content=jpeg(40), headers=headers)
        assert answer.json()["pictures"] == 9
        assert len(read_index(index_file)) == 8
        assert process.end() == 0
    assert len(read_index(index_file)) == 9


def test_ctrl_c_ends_it_without_a_traceback(engine_file):
    with served(engine_file) as process:
        process.wait_until_ready()
        assert process.end(signal.SIGINT) == 0
        assert "Traceback" not in process.errors


def test_several_engines_have_names(engine_file, tmp_path):
    other = write_fake_engine(tmp_path / "fake.cgd")
    with served(engine_file, f"second={other}") as process:
        process.wait_until_ready()
        names = [model["id"] for model in httpx.get(f"{process.url}/v1/models").json()["data"]]
        assert names == ["fake", "second"]


def test_the_blocks_of_its_page_run(engine_file, index_file, tmp_path):
    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (_, command), *others = found
    assert command.startswith("cgd-deploy serve ")
    assert [kind for kind, _ in others] == ["python", "sh", "sh", "python"]
    pytest.importorskip("openai")
    (tmp_path / "artifacts").mkdir()
    shutil.copy(engine_file, tmp_path / "artifacts" / "model-int8.cgd")
    for number, name in enumerate(("a.jpg", "b.jpg")):
        (tmp_path / name).write_bytes(jpeg(number))
    with served(*shlex.split(command)[2:], folder=tmp_path) as process:
        process.wait_until_ready()
        for kind, block in others:
            program = ["bash", "-ec"] if kind == "sh" else [sys.executable, "-c"]
            block = block.replace("http://127.0.0.1:8000", process.url).replace("curl ", "curl -sSf ")
            done = subprocess.run([*program, block], capture_output=True, text=True, timeout=60, cwd=tmp_path)
            assert done.returncode == 0, (block, done.stderr)
            assert done.stdout, block
    assert (tmp_path / "rows.f32").stat().st_size == 2 * 4 * FAKE_SPEC.dim


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.cgd"], "there is no engine at none.cgd"),
        (["{engine}", "{engine}"], "two engines are called fake"),
        (["{engine}", "--index", "none.npy"], "none.npy is not an index"),
        (["{engine}", "--api-keys", "none"], "the keys in none cannot be read"),
        (["{engine}", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["{engine}", "--port", "70000"], "cannot listen on 127.0.0.1:70000"),
        (["{engine}", "--max-delay-ms", "inf"], "max_delay_ms=inf cannot be used"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(engine_file, arguments, told, tmp_path):
    command = [sys.executable, "-m", "cgd_deploy", "serve", "--port", "0"]
    command += [text.format(engine=engine_file) for text in arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"cgd-deploy: {told}"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told(engine_file, server):
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "cgd_deploy", "serve", str(engine_file), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
