"""A tritonserver for tests and measurements, from the wheel nvidia-pytriton, with its Python backend.

    pip install --no-deps nvidia-pytriton
    python benchmarks/tritonserver.py REPOSITORY

The wheel has no other backend. We do not use its Python package.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from cgd_deploy.errors import CgdError, InputError, MissingDependency

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 20.0


@contextmanager
def serving(repository: Path, *options: str) -> Iterator[tuple[str, str]]:
    """Serve a model repository; yields host:port for HTTP and for gRPC.

    options   more options of tritonserver

    Raises MissingDependency if the wheel or its Python is missing, InputError if a model does not load.
    """
    packages = find_wheel()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        http, grpc = free_ports(2)
        command = [
            str(packages / "pytriton/tritonserver/bin/tritonserver"),
            *("--model-repository", str(repository), "--backend-directory", str(python_backend(packages, folder))),
            *("--http-address", HOST, "--http-port", str(http), "--grpc-address", HOST, "--grpc-port", str(grpc)),
            *("--allow-metrics", "false", "--exit-timeout-secs", "10", *options),
        ]
        process = stack.enter_context(running(command, environment(packages), folder / "log"))
        wait_until_ready(process, http, folder / "log")
        yield f"{HOST}:{http}", f"{HOST}:{grpc}"


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a new group, and end the whole group afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until every model is loaded; raises InputError with the server's errors if a model does not load."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/v2/health/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("E", "error"))]
    raise InputError(f"tritonserver did not start: {'; '.join(errors) or 'it prints nothing'}.")


def find_wheel() -> Path:
    """The folder in which nvidia-pytriton is installed. First checks that the program that runs model.py starts."""
    found = find_spec("pytriton")
    packages = Path(found.origin).parent.parent if found and found.origin else Path()
    stub = python_stub(packages) / "triton_python_backend_stub"
    if not stub.is_file():
        raise MissingDependency(
            "there is no tritonserver for this Python; run `pip install --no-deps nvidia-pytriton` (Linux, x86-64)."
        )
    tried = subprocess.run([stub], env=environment(packages), capture_output=True, text=True)
    if "error while loading shared libraries" in tried.stderr:
        raise MissingDependency(f"tritonserver cannot run Python ({tried.stderr.strip()}); install that library.")
    return packages


def python_stub(packages: Path) -> Path:
    return packages / f"pytriton/tritonserver/python_backend_stubs/3.{sys.version_info.minor}"


def python_backend(packages: Path, folder: Path) -> Path:
    """Make a backend directory with Triton's Python backend and the stub for this Python."""
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    for part in (packages / "pytriton/tritonserver/backends/python", python_stub(packages)):
        for file in part.iterdir():
            (python / file.name).symlink_to(file)
    return python.parent


def environment(packages: Path) -> dict[str, str]:
    """The environment of the server. Its stubs use the first Python on the PATH, and ignore PYTHONPATH."""
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
    }


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", type=Path, help="written by `cgd-deploy export-triton --python`")
    repository = parser.parse_args().repository
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serving(repository) as (http, grpc):
            print(f"HTTP on {http}, gRPC on {grpc}; end with Ctrl-C", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except CgdError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
