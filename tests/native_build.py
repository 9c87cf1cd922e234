"""The C library installed, and C programs built against it, for test_native.py and test_native_host.py."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "native"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")

NEEDS_NATIVE = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("c++")), reason="there is no C compiler")
needs_pkg_config = pytest.mark.skipif(not shutil.which("pkg-config"), reason="there is no pkg-config")
HEADERS = ("cstdio", "jpeglib.h", "zlib.h", "nlohmann/json.hpp")
"""The headers of libraries that the library without Python needs; jpeglib.h needs stdio first."""


@pytest.fixture(scope="session", params=["plain", "python"])
def prefix(request: pytest.FixtureRequest) -> Path:
    """The library without Python, then the library that runs it."""
    return request.getfixturevalue(f"{request.param}_prefix")


@pytest.fixture(scope="session")
def plain_prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("cmake") and find_spec("openvino")):
        pytest.skip("CMake or OpenVINO is not installed")
    includes = "".join(f"#include <{header}>\n" for header in HEADERS)
    command = ["c++", "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(command, input=includes, text=True, capture_output=True).returncode:
        pytest.skip(f"one of the headers {', '.join(HEADERS[1:])} is not installed")
    return shared_prefix(tmp_path_factory, "plain", CXXFLAGS="-Werror", CFLAGS="-Werror")


@pytest.fixture(scope="session")
def python_prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (find_spec("cffi") and find_spec("setuptools")):
        pytest.skip("cffi is not installed")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared library")
    return shared_prefix(tmp_path_factory, "python", "--embed-python")


def shared_prefix(tmp_path_factory: pytest.TempPathFactory, name: str, *options: str, **variables: str) -> Path:
    """A library that the first worker of this test run builds, and the other workers use."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    prefix = folder / name / "a prefix"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not prefix.exists():
            installed_by(sys.executable, prefix, *options, **variables)
    return prefix


def installed_by(python: str | Path, prefix: Path, *options: str, **variables: str) -> Path:
    command = [python, "-m", "cgd_deploy", "install-native", "--prefix", prefix, *options]
    environment = {**os.environ, **variables}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return prefix


def run(*command: object, folder: Path | None = None, status: int = 0, **variables: str) -> str:
    return run_in({**os.environ, **variables}, *command, folder=folder, status=status)


def run_in(environment: dict[str, str], *command: object, folder: Path | None = None, status: int = 0) -> str:
    """What the command prints on stdout, or on stderr if it has to fail."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=folder, env=environment, timeout=120
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout if status == 0 else done.stderr


def compiled(prefix: Path, source: Path, *options: str, compiler: str = "cc") -> Path:
    ours = ROOT in source.parents
    program = prefix.parent / f"{source.stem}-{os.getpid()}.out" if ours else source.with_suffix(".out")
    found = run("pkg-config", "--cflags", "--libs", "cgd", PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig"))
    flags = [flag.replace("\0", " ") for flag in found.replace("\\ ", "\0").split()]
    run(compiler, *STRICT, *options, source, *flags, "-o", program)
    return program
