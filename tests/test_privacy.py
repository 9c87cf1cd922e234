"""Loading an engine opens no socket, starts no process and writes no file, whatever its runtime likes to report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = ("openvino", "onnxruntime")

EMBED = """
import sys
from cgd_deploy import load
with load(sys.argv[1]) as engine:
    print(engine.embed([sys.argv[2]]).shape)
"""

AUDIT = """
import sys

WRITING = {"w", "a", "x", "+"}

def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and WRITING.intersection(arguments[1])
    if writes or event.startswith("socket.") or event in {"os.fork", "os.mkdir", "os.posix_spawn", "subprocess.Popen"}:
        print(event, arguments)

sys.addaudithook(hook)
"""


def environment(home: Path) -> dict[str, str]:
    """A machine whose runtimes would report: telemetry keeps quiet where it finds a CI."""
    home.mkdir()
    silencing = {"CI", "TF_BUILD", "GITHUB_ACTIONS", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    return {**{name: value for name, value in os.environ.items() if name not in silencing}, "HOME": str(home)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_python_sees_no_socket_no_process_and_no_file_written(backend, engines, pictures, tmp_path):
    command = [sys.executable, "-B", "-c", AUDIT + EMBED, engines[backend, "int8"], pictures / "kind-0" / "0.jpg"]
    home = tmp_path / "home"
    done = subprocess.run(command, capture_output=True, text=True, env=environment(home), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("(1, 96)\n", "")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_sees_none_either(backend, engines, pictures, tmp_path):
    strace = shutil.which("strace")
    if not strace or subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("strace is not installed, or may not trace here")
    trace = tmp_path / "trace"
    calls = "socket,fork,vfork,clone,clone3,execve,mkdir,openat"
    tracing = [strace, "-f", "-o", trace, "-e", f"trace={calls}"]
    command = [sys.executable, "-B", "-c", EMBED, engines[backend, "int8"], pictures / "kind-0" / "0.jpg"]
    home = tmp_path / "home"
    done = subprocess.run([*tracing, *command], capture_output=True, text=True, env=environment(home), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("(1, 96)\n", "")
    lines = trace.read_text().splitlines()[1:]  # the first starts Python itself
    processes = [line for line in lines if ("clone(" in line or "clone3(" in line) and "CLONE_THREAD" not in line]
    assert processes == []
    assert [line for line in lines if any(call in line for call in ("socket(", "fork(", "execve(", "mkdir("))] == []
    assert [line for line in lines if "O_CREAT" in line and "/dev/shm" not in line] == []


@pytest.mark.slow
def test_workers_of_ray_report_nothing_either(engines, pictures, tmp_path):
    """Ray itself keeps a token for its own processes in ~/.ray."""
    pytest.importorskip("ray", reason="ray is not installed")
    command = [sys.executable, "-m", "cgd_deploy", "embed", pictures, "-e", engines["openvino", "int8"]]
    home = tmp_path / "home"
    options = ["-o", tmp_path / "index.parquet", "--ray", "--workers", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment(home))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in home.iterdir()} <= {".ray"}


def test_openvino_stays_whole_for_the_rest_of_the_process():
    code = """
import sys
import openvino_telemetry
from cgd_deploy.runtime.backends.openvino import import_openvino
openvino = import_openvino()
print(callable(openvino.convert_model), sys.modules["openvino_telemetry"] is openvino_telemetry)
print(sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True True\nopenvino.tools.ovc.telemetry_stub\n", "")


def test_a_caller_may_ask_for_onnxruntimes_telemetry(monkeypatch):
    from cgd_deploy.runtime.backends.onnxruntime import import_onnxruntime

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_the_name_of_an_unknown_cpu_starts_no_process(monkeypatch):
    from cgd_deploy.hardware import cpu

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(cpu, "_cpuinfo", lambda: [])
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert cpu.cpu_name()
