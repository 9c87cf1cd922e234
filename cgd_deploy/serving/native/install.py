"""Installs libcgd.so where C and C++ builds look for libraries: the library without Python, or the one that runs it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from ...files import replacing, write_text
from .build_embedded import build_embedded
from .build_plain import build_plain

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
SOVERSION = "0"
LIBRARY = f"libcgd.so.{SOVERSION}"


def install_native(prefix: str | Path, embed_python: bool = False) -> list[Path]:
    """Build the library and write include/, lib/, lib/pkgconfig/ and lib/cmake/ below ``prefix``. Returns the files.

    embed_python   build the library that runs this Python with its packages, and so reads every engine, index and
                   picture that Python reads. False: the library without Python, for OpenVINO's engines on CPUs, indices
                   in .npy files, JPEG and PNG

    Install the library again after its OpenVINO or its Python has moved or changed.

    Raises MissingDependency if something that the build needs is not installed; InputError for a prefix that cannot be
    written.
    """
    prefix = Path(prefix).absolute()
    values = {"VERSION": _version(), "SOVERSION": SOVERSION}
    installed = []
    with TemporaryDirectory() as folder:
        library = (build_embedded if embed_python else build_plain)(Path(folder), LIBRARY)
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


def _version() -> str:
    header = (INCLUDE / "cgd.h").read_text(encoding="utf-8")
    return ".".join(re.findall(r"#define CGD_VERSION_\w+ (\d+)", header))
