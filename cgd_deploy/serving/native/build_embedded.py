"""Builds libcgd.so that runs the running Python inside the caller's process."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from ...errors import MissingDependency, in_one_line, not_installed

HERE = Path(__file__).parent

FOR_PYTHON = """
void *malloc(size_t size);
void shut_down(void);
void finish_ticket(cgd_ticket *ticket, int status, const char *message);
"""
"""The functions of C that embedded.py calls."""

BOOT = """
problem = b""
try:
    import site, sys
    path = list(sys.path)
    for folder in {packages!a}:
        site.addsitedir(folder)
    if joined:
        sys.path[:] = [folder for folder in sys.path if folder not in path] + path
    sys.argv = getattr(sys, "argv", [""])
    import _cffi_backend, cgd_deploy.serving.native.embedded
except BaseException as error:
    problem = (type(error).__name__ + ": " + str(error)).encode(errors="replace")
"""
"""The library runs this code first, once Python has its standard library. In a process that already has a Python
(``joined``), the packages of the Python that built the library come before the packages of the process."""

START = """
from _libcgd import ffi, lib
from cgd_deploy.serving.native.embedded import serve
serve(ffi, lib)
"""


def build_embedded(folder: Path, name: str) -> Path:
    """Build the library as ``name`` in ``folder`` and return its path.

    Raises MissingDependency without cffi, a C compiler or a Python with a shared library.
    """
    try:
        import cffi
        import setuptools  # noqa: F401  (cffi compiles with it)
    except ModuleNotFoundError as error:
        raise not_installed(error, "native") from error
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise MissingDependency(
            f"{sys.executable} has no shared library to embed; use a Python that was built with --enable-shared."
        )
    libpython = sysconfig.get_config_var("LIBDIR")
    ffi = cffi.FFI()
    ffi.cdef(_part("include/cgd.h", "types") + _part("inside.h", "structs") + "#define CGD_MESSAGE ...\n" + FOR_PYTHON)
    ffi.embedding_api(_part("inside.h", "functions"))
    ffi.embedding_init_code(START)
    ffi.set_source(
        "_libcgd",
        f'#include "inside.h"\n{_python()}#define CGD_START "python.c"\n#include "cgd.c"\n',
        include_dirs=[str(HERE)],
        extra_compile_args=["-std=gnu11", "-O2"],
        extra_link_args=[
            f"-Wl,-soname,{name}",
            f"-Wl,--version-script={HERE / 'exports'}",
            f"-Wl,-rpath,{libpython}",
            "-Wl,-z,nodelete",  # Python stays in the process after dlclose
        ],
        library_dirs=[libpython],
    )
    try:
        return Path(ffi.compile(tmpdir=str(folder), target=name))
    except Exception as error:  # errors of cffi and setuptools differ by version
        raise MissingDependency(
            f"libcgd.so could not be compiled ({in_one_line(error)}); install a C compiler and the "
            "headers of this Python."
        ) from error


def _part(header: str, name: str) -> str:
    """The text between two comments of a header, for cffi, which reads no preprocessor lines."""
    text = (HERE / header).read_text(encoding="utf-8")
    return text.split(f"/* {name}: begin */")[1].split(f"/* {name}: end */")[0]


def _python() -> str:
    """C macros with the paths of this Python, so the library need not search for them."""
    packages = [*([site.getusersitepackages()] if site.ENABLE_USER_SITE else []), *site.getsitepackages()]
    standard = [sys.executable, "-I", "-S", "-c", "import json, sys; print(json.dumps(sys.path))"]
    folders = json.loads(subprocess.run(standard, capture_output=True, check=True).stdout)
    values = {
        "EXECUTABLE": sys.executable,
        "PREFIX": sys.prefix,
        "EXEC_PREFIX": sys.exec_prefix,
        "BASE_PREFIX": sys.base_prefix,
        "BASE_EXEC_PREFIX": sys.base_exec_prefix,
        "BOOT": BOOT.format(packages=[folder for folder in packages if Path(folder).is_dir()]),
    }
    lines = [f"#define PYTHON_{name} {_c_literal(value)}\n" for name, value in values.items()]
    return "".join([*lines, f"#define PYTHON_FOLDERS {', '.join(map(_c_literal, folders))}\n"])


def _c_literal(text: str) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in os.fsencode(text)) + '"'
