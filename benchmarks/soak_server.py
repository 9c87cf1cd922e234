"""A soak test of ``cgd-deploy serve``: good and bad requests for minutes, while its memory and handles stay flat.

    python benchmarks/soak_server.py int8.cgd --minutes 10 -o benchmarks/results/soak-server.json

Threads send JPEG files alone, in forms and as OpenAI's JSON, damaged files, bodies that are too large, other types,
unknown routes, and requests that break off in the middle. A request with a good picture must get its descriptor, or
503 if the queue is full; each bad one must get its status. Memory counts after the first fifth of the time; its slope
has a 95 % interval. Exit status 3 if an answer is wrong.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import running
from cgd_deploy import load
from cgd_deploy.hardware.cpu import cpu_name
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.golden import golden_images
from httpserver import ROWS, Client, jpeg_files, serving
from soak import PICTURES, QUEUE, TOLERANCE, WARM_UP, chart, keep_on, slopes, watch

MAX_BODY_MB = 1.0
CLIENTS = 6
FULL = 503


class Traffic:
    """Sends requests of all kinds to one server, and counts the answers."""

    def __init__(self, engine: Path, address: str) -> None:
        with load(engine) as loaded:
            self.files = jpeg_files(golden_images(loaded.spec, PICTURES))
            self.expected = loaded.embed(self.files)
        self.address = address
        self.client = Client(address, CLIENTS)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def request(self, random: random.Random) -> None:
        """One request of a random kind."""
        kinds = (self.one, self.form, self.openai, self.bad, self.gone)
        [kind] = random.choices(kinds, weights=(3, 1, 1, 1, 1))
        kind(random.randrange(PICTURES - 3))

    def one(self, number: int) -> None:
        status, body = self.client.ask("/embed", self.files[number], ROWS)
        self._check("one", status, body, slice(number, number + 1))

    def form(self, number: int) -> None:
        head = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.jpg\r\n\r\n"
        body = b"".join(head + file + b"\r\n" for file in self.files[number : number + 3]) + b"--x--\r\n"
        headers = {**ROWS, "Content-Type": "multipart/form-data; boundary=x"}
        self._check("form", *self.client.ask("/embed", body, headers), slice(number, number + 3))

    def openai(self, number: int) -> None:
        picture = base64.b64encode(self.files[number]).decode()
        body = json.dumps({"input": picture, "encoding_format": "base64"}).encode()
        status, found = self.client.ask("/v1/embeddings", body, {"Content-Type": "application/json"})
        if status == 200:
            found = base64.b64decode(json.loads(found)["data"][0]["embedding"])
        self._check("openai", status, found, slice(number, number + 1))

    def bad(self, number: int) -> None:
        """A request that must be refused."""
        file = self.files[number]
        route, body, headers, wanted = (
            ("/embed", file[: len(file) // 9], ROWS, 422),
            ("/embed", bytes(int(MAX_BODY_MB * 1e6) + 1), ROWS, 413),
            ("/embed", file, {"Content-Type": "text/html"}, 415),
            ("/v1/embeddings", b"{", {"Content-Type": "application/json"}, 422),
            ("/nowhere", file, {}, 404),
        )[number % 5]
        try:
            status, _ = self.client.ask(route, body, headers)
        except OSError:
            if wanted != 413:  # the server closes the connection of a large body, perhaps before it is sent
                raise
            status = wanted
        if status in (wanted, FULL):
            self._count(str(status))
        else:
            self._count("wrong", f"status {status}, not {wanted}")

    def gone(self, number: int) -> None:
        """A client that breaks off before or after the whole body."""
        file = self.files[number]
        host, _, port = self.address.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(file)}\r\n\r\n".encode()
            connection.sendall(head + file[: len(file) // 2 if number % 2 else len(file)])
        self._count("gone")

    def _check(self, kind: str, status: int, body: bytes, rows: slice) -> None:
        expected = self.expected[rows]
        if status == FULL:
            self._count(str(FULL))
        elif status != 200 or len(body) != expected.nbytes:
            self._count("wrong", f"{kind}: status {status} with {len(body)} bytes")
        else:
            error = float(np.abs(np.frombuffer(body, "<f4").reshape(expected.shape) - expected).max())
            if error <= TOLERANCE:
                self._count(kind)
            else:
                self._count("wrong", f"{kind}: off by {error:.4f}")

    def _count(self, what: str, *wrong: str) -> None:
        with self._lock:
            self.counts[what] += 1
            self.wrong += wrong


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Everything but the writing; raises CgdError."""
    failed: list[str] = []
    arguments = ("--max-queue", QUEUE, "--max-body-mb", MAX_BODY_MB)
    with serving(options.engine, *arguments) as (address, served):
        traffic, process = Traffic(options.engine, address), psutil.Process(served.pid)
        end = time.monotonic() + 60 * options.minutes
        threads = [
            threading.Thread(target=keep_on, args=(traffic.request, seed, end, options.pause, failed))
            for seed in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        samples = watch(process, threads, options, partial(on_progress, "soaking"))
        traffic.client.close()
    return {
        "schema": 1,
        "environment": {"cpu": cpu_name(), "minutes": options.minutes},
        "counts": dict(sorted(traffic.counts.items())),
        "failures": failed + traffic.wrong,
        "slopes": slopes(samples, WARM_UP * options.minutes),
        "samples": samples,
    }


def main() -> None:
    parser = running.parser(__doc__, "soak-server.json")
    parser.add_argument("engine", type=Path, help="a .cgd file")
    parser.add_argument("--minutes", type=float, default=10.0, help="[default: 10]")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples [default: 5]")
    parser.add_argument(
        "--pause", type=float, default=0.05, help="mean seconds between a client's requests [default: 0.05]"
    )
    result = running.run(measure, parser.parse_args(), chart)
    running.show(result, "counts", "failures", "slopes")
    sys.exit(3 if result["failures"] else 0)


if __name__ == "__main__":
    main()
