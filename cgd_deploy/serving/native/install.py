"""Builds libcgd.so for the running Python, and installs it where C and C++ builds look for libraries."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from ...errors import MissingDependency, in_one_line, not_installed
from ...files import replacing, write_text

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
SOVERSION = "0"
LIBRARY = f"libcgd.so.{SOVERSION}"
MESSAGE_BYTES = 1024

STRUCTS = """
typedef struct cgd_facts { size_t dim; uint32_t width; uint32_t height; char space_id[256]; } cgd_facts;
typedef struct cgd_index_facts { size_t size; size_t dim; const char **texts; } cgd_index_facts;
typedef struct cgd_rows { const float *values; size_t count; size_t stride; } cgd_rows;
typedef struct cgd_found { uint64_t *indices; float *scores; } cgd_found;
typedef struct cgd_wanted { float *out; double timeout_ms; cgd_ticket *ticket; } cgd_wanted;
"""
"""``texts`` has the space_id of an index, then its paths. ``stride`` is in bytes, 0 for rows without a gap."""
FUNCTIONS = """
int cgdpy_open(const char *path, const cgd_options *options, uint64_t *number, cgd_facts *facts, char *message);
int cgdpy_close(uint64_t number, char *message);
int cgdpy_self_test(uint64_t number, float *cosine, char *message);
int cgdpy_embed(uint64_t number, const cgd_image *images, size_t count, float *out, char *message);
int cgdpy_embed_encoded(uint64_t number, const void *const *files, const size_t *sizes, size_t count, float *out,
                        char *message);
int cgdpy_submit(uint64_t number, const cgd_image *image, const cgd_wanted *wanted, char *message);
int cgdpy_submit_encoded(uint64_t number, const void *file, size_t size, const cgd_wanted *wanted, char *message);
int cgdpy_cancel(cgd_ticket *ticket, char *message);
int cgdpy_stats(uint64_t number, cgd_stats *stats, char *message);
int cgdpy_set_log(cgd_log log, void *context, int least, char *message);
int cgdpy_search(const cgd_rows *queries, const cgd_rows *gallery, size_t dim, size_t k, const cgd_found *found,
                 char *message);
int cgdpy_set_limit(const char *name, const char *value, char *message);
int cgdpy_index_open(const char *path, uint64_t *number, cgd_index_facts *facts, char *message);
int cgdpy_index_close(uint64_t number, char *message);
int cgdpy_index_search(uint64_t number, uint64_t engine, const cgd_rows *queries, size_t k, const cgd_found *found,
                       char *message);
"""
"""The functions of embedded.py that cgd.c calls. Each returns a status plus one, or 0 after an unexpected error."""

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

EXPORTS = "{ global: cgd_*; local: *; };\n"


def install_native(prefix: str | Path) -> list[Path]:
    """Build the library and write include/, lib/, lib/pkgconfig/ and lib/cmake/ below ``prefix``. Returns the files.

    The library runs this Python with its packages. Install the library again after either has moved or changed.

    Raises MissingDependency without cffi, a C compiler or a Python with a shared library; InputError for a prefix that
    cannot be written.
    """
    prefix = Path(prefix).absolute()
    values = {"VERSION": _version(), "SOVERSION": SOVERSION}
    installed = []
    with TemporaryDirectory() as folder:
        library = _build(Path(folder))
        for source, target in (
            (library, prefix / "lib" / LIBRARY),
            *((header, prefix / "include" / header.name) for header in sorted(INCLUDE.iterdir())),
        ):
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
            installed.append(target)
    link = prefix / "lib" / "libcgd.so"
    with replacing(link) as temporary:
        temporary.symlink_to(LIBRARY)
    installed.append(link)
    for name, where in (
        ("cgd.pc", "lib/pkgconfig"),
        ("cgdConfig.cmake", "lib/cmake/cgd"),
        ("cgdConfigVersion.cmake", "lib/cmake/cgd"),
    ):
        text = (HERE / f"{name}.in").read_text(encoding="utf-8")
        text = re.sub(r"@(\w+)@", lambda match: values[match[1]], text)
        installed.append(write_text(prefix / where / name, text))
    return installed


def _build(folder: Path) -> Path:
    """Build libcgd.so.0 in ``folder`` and return its path."""
    try:
        import cffi
        import setuptools  # noqa: F401  (cffi compiles with it)
    except ModuleNotFoundError as error:
        raise not_installed(error, "native") from error
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise MissingDependency(
            f"{sys.executable} has no shared library to embed; use a Python that was built with --enable-shared."
        )
    header = (INCLUDE / "cgd.h").read_text(encoding="utf-8")
    types = header.split("/* types: begin */")[1].split("/* types: end */")[0]
    constant = f"#define CGD_MESSAGE {MESSAGE_BYTES}\n"
    exports = folder / "exports"
    exports.write_text(EXPORTS)
    libpython = sysconfig.get_config_var("LIBDIR")
    ffi = cffi.FFI()
    ffi.cdef(types + constant + STRUCTS + FOR_PYTHON)
    ffi.embedding_api(FUNCTIONS)
    ffi.embedding_init_code(START)
    ffi.set_source(
        "_libcgd",
        f'#include "cgd.h"\n{constant}{STRUCTS}{FUNCTIONS}{_python()}#include "cgd.c"\n',
        include_dirs=[str(INCLUDE), str(HERE)],
        extra_compile_args=["-std=gnu11", "-O2"],
        extra_link_args=[
            f"-Wl,-soname,{LIBRARY}",
            f"-Wl,--version-script={exports}",
            f"-Wl,-rpath,{libpython}",
            "-Wl,-z,nodelete",  # Python stays in the process after dlclose
        ],
        library_dirs=[libpython],
    )
    try:
        return Path(ffi.compile(tmpdir=str(folder), target=LIBRARY))
    except Exception as error:  # errors of cffi and setuptools differ by version
        raise MissingDependency(
            f"libcgd.so could not be compiled ({in_one_line(error)}); install a C compiler and the "
            "headers of this Python."
        ) from error


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


def _version() -> str:
    header = (INCLUDE / "cgd.h").read_text(encoding="utf-8")
    return ".".join(re.findall(r"#define CGD_VERSION_\w+ (\d+)", header))
