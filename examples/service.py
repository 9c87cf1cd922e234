"""Search over HTTP, with nothing but Python's own server: send a picture, get the nearest of an index as JSON.

    python examples/service.py model-int8.cgd index.npy --port 8000
    curl --data-binary @query.jpg http://localhost:8000/?k=3

Each request has a thread of its own, and one engine gathers their pictures into batches.
"""

from __future__ import annotations

import argparse
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cgd_deploy import Batching, CgdError, Engine, Overloaded, load
from cgd_deploy.search.index import Index, read_index

LARGEST = 32 << 20
"""Bytes of a picture."""


class Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, engine: Engine, gallery: Index) -> None:
        super().__init__(("localhost", port), Handler)
        self.engine = engine
        self.gallery = gallery


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        k = parse_qs(urlsplit(self.path).query).get("k", ["8"])[0]
        if not (size.isdigit() and int(size) <= LARGEST and k.isdigit()):
            self.answer(HTTPStatus.BAD_REQUEST, {"error": "send a picture, with its length, and k as a number."})
            return
        try:
            descriptor = self.server.engine.submit(self.rfile.read(int(size))).result()
            found, scores = self.server.gallery.search(self.server.engine, descriptor[None], int(k))
        except Overloaded as error:
            self.answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})
        except CgdError as error:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        else:
            paths = self.server.gallery.paths
            rows = zip(found[0], scores[0], strict=True)
            self.answer(HTTPStatus.OK, [{"path": paths[i], "similarity": round(float(s), 5)} for i, s in rows])

    def answer(self, status: HTTPStatus, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", help="a .cgd file")
    parser.add_argument("index", help="made with it by cgd-deploy embed")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    gallery = read_index(options.index)
    engine = load(options.engine, batching=Batching(max_queue=64))
    with engine, Service(options.port, engine, gallery) as service:
        print(f"listening on port {service.server_port}", flush=True)
        service.serve_forever()


if __name__ == "__main__":
    main()
