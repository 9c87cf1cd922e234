"""The C library installed, and C programs built against it, for test_native.py and test_native_host.py."""

from __future__ import annotations

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

NEEDS_NATIVE = [
    pytest.mark.skipif(not (shutil.which("cc") and shutil.which("c++")), reason="there is no C compiler"),
    pytest.mark.skipif(not (find_spec("cffi") and find_spec("setuptools")), reason="cffi is not installed"),
    pytest.mark.skipif(not sysconfig.get_config_var("Py_ENABLE_SHARED"), reason="this Python has no shared library"),
]
needs_pkg_config = pytest.mark.skipif(not shutil.which("pkg-config"), reason="there is no pkg-config")


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "a prefix"
    installed_by(sys.executable, folder)
    return folder


def installed_by(python: str | Path, prefix: Path) -> None:
    command = [python, "-m", "cgd_deploy", "install-native", "--prefix", prefix]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


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
    program = prefix.parent / f"{source.stem}.out" if ours else source.with_suffix(".out")
    found = run("pkg-config", "--cflags", "--libs", "cgd", PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig"))
    flags = [flag.replace("\0", " ") for flag in found.replace("\\ ", "\0").split()]
    run(compiler, *STRICT, *options, source, *flags, "-o", program)
    return program
