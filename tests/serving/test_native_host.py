"""The C library in processes of every kind: it finds its Python, leaves the process alone, and lets it end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from native_build import EXAMPLES, NEEDS_NATIVE, ROOT, compiled, installed_by, needs_pkg_config, run, run_in

from cgd_deploy import load

pytestmark = [NEEDS_NATIVE, needs_pkg_config]


@pytest.fixture(scope="module")
def embed(prefix) -> Path:
    return compiled(prefix, EXAMPLES / "embed.c", "-std=c99")


@pytest.fixture(scope="module")
def python_embed(python_prefix) -> Path:
    return compiled(python_prefix, EXAMPLES / "embed.c", "-std=c99")


@pytest.fixture
def engine_file(request: pytest.FixtureRequest) -> Path:
    """The fake engine where the library runs Python, else a real one."""
    plain = request.node.callspec.params["prefix"] == "plain"
    return request.getfixturevalue("native_engine" if plain else "fake_engine")


@pytest.fixture(scope="module")
def host(prefix) -> Path:
    return compiled(prefix, ROOT / "tests" / "data" / "native_host.c", "-std=c99", "-pthread")


@pytest.fixture
def traps(tmp_path) -> Path:
    """A folder whose programs and modules write the file ``sprung`` if anything runs or imports them."""
    folder = tmp_path / "traps"
    folder.mkdir()
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{folder}/sprung'\n")
        (folder / name).chmod(0o755)
    for name in ("_cffi_backend", "encodings", "json", "numpy", "cgd_deploy", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\nraise SystemExit(5)\n")
    (folder / "pyvenv.cfg").write_text(f"home = {folder}\n")
    return folder


HOSTILE = {
    "nothing": {},
    "PYTHONHOME": {"PYTHONHOME": "/nonexistent"},
    "PYTHONPATH": {"PYTHONPATH": "TRAPS", "PYTHONSTARTUP": "TRAPS/json.py", "PYTHONUSERBASE": "TRAPS"},
    "PATH": {"PATH": "TRAPS", "PYTHONEXECUTABLE": "TRAPS/python3"},
    "a locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONMALLOC": "no such thing"},
}


@pytest.mark.parametrize("variables", HOSTILE.values(), ids=HOSTILE)
def test_the_environment_changes_nothing(embed, engine_file, pictures, traps, variables):
    environment = {name: value.replace("TRAPS", str(traps)) for name, value in variables.items()}
    picture = pictures / "kind-0" / "0.jpg"
    with load(engine_file) as engine:
        (expected,) = engine.embed([picture])
    name, *values = run_in(environment, embed, engine_file, picture, folder=traps).rsplit(maxsplit=3)
    assert name == str(picture) and [float(value) for value in values] == pytest.approx(expected[:3].tolist(), rel=1e-6)
    assert not (traps / "sprung").exists()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_no_runtime_reports_into_the_home_of_the_process(python_embed, engines, pictures, tmp_path, backend):
    run_in(
        {"HOME": str(tmp_path)}, python_embed, engines[backend, "int8"], pictures / "kind-0" / "0.jpg", folder=Path("/")
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m\N{LATIN SMALL LETTER O WITH DIAERESIS}del.cgd", os.fsdecode(b"m\xf6del.cgd")])
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C.UTF-8"}])
def test_file_names_keep_their_bytes(embed, engine_file, pictures, tmp_path, name, locale):
    engine = shutil.copy(engine_file, tmp_path / name)
    assert "0.jpg" in run_in(locale, embed, engine, pictures / "kind-0" / "0.jpg", folder=Path("/"))


def test_a_library_of_an_environment_with_another_alphabet(fake_engine, pictures, tmp_path):
    """Its packages come by a .pth file, which runs as it does in Python."""
    home = tmp_path / "\N{CYRILLIC SMALL LETTER ZHE}"
    venv.create(home, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(home)})
    here = sysconfig.get_path("purelib")
    (Path(packages) / "all.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    installed_by(home / "bin" / "python", tmp_path / "prefix", "--embed-python")
    shutil.copy(EXAMPLES / "embed.c", tmp_path)
    program = compiled(tmp_path / "prefix", tmp_path / "embed.c", "-std=c99")
    assert "0.jpg" in run_in({}, program, fake_engine, pictures / "kind-0" / "0.jpg", folder=Path("/"))


def test_a_python_that_moved_is_told(python_prefix, python_embed, fake_engine, tmp_path):
    library = (python_prefix / "lib" / "libcgd.so.0").read_bytes()
    for folder, told in (
        (sysconfig.get_path("stdlib"), "Python cannot start"),
        (sysconfig.get_path("purelib"), "No module named"),
    ):
        here = os.fsencode(folder)
        (tmp_path / "libcgd.so.0").write_bytes(
            library.replace(here + b"\0", here[:-4] + b"gone\0").replace(here + b"'", here[:-4] + b"gone'")
        )
        error = run_in({"LD_PRELOAD": str(tmp_path / "libcgd.so.0")}, python_embed, fake_engine, "a.jpg", status=1)
        assert told in error and "cgd-deploy install-native" in error.splitlines()[-1]


def test_a_host_may_load_the_library_as_a_plugin(prefix, engine_file, tmp_path):
    """With RTLD_LOCAL, so that Python's symbols are not global, and with dlclose."""
    (tmp_path / "plugin.c").write_text(
        """
        #include <cgd.h>
        #include <dlfcn.h>
        #include <stdio.h>
        int main(int argc, char **argv) {
            void *library = dlopen(argv[argc - 2], RTLD_NOW | RTLD_LOCAL);
            cgd_engine *engine;
            __typeof__(cgd_engine_open) *open_engine = (__typeof__(cgd_engine_open) *)dlsym(library, "cgd_engine_open");
            __typeof__(cgd_last_error) *error = (__typeof__(cgd_last_error) *)dlsym(library, "cgd_last_error");
            if (open_engine(argv[argc - 1], NULL, &engine) != CGD_OK) return fprintf(stderr, "%s\\n", error()), 1;
            return dlclose(library);
        }
        """
    )
    run("cc", "-std=gnu11", f"-I{prefix / 'include'}", "plugin.c", "-o", "plugin", "-ldl", folder=tmp_path)
    run_in({}, tmp_path / "plugin", prefix / "lib" / "libcgd.so.0", engine_file)


def interrupted(*command: str | Path) -> tuple[int, str, str]:
    """Status, stdout and stderr of a program that gets SIGINT when it says that it is ready."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            printed = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, *printed


def test_sigint_is_the_hosts(host, engine_file):
    assert interrupted(host, engine_file, "no handler") == (-signal.SIGINT, "", "")
    assert interrupted(host, engine_file, "own handler") == (0, "stopped\nclosed\n", "")


def test_a_signal_after_another_thread_closed_the_engine(host, engine_file):
    assert run_in({}, host, engine_file, "close elsewhere") == ""


@pytest.mark.parametrize(
    ("mode", "printed"),
    [
        ("_exit", ""),
        ("fork", "closed\n"),
        ("close before the library ends", "closed\n"),
        ("close after the library ended", "closed\n"),
    ],
)
def test_the_process_ends_however_it_likes(host, engine_file, mode, printed):
    assert run_in({}, host, engine_file, mode, 20) == printed


def test_the_end_of_the_process_waits_for_submitted_images(host, engine_file):
    for _ in range(3):
        *done, last = run_in({}, host, engine_file, "images").splitlines()
        assert sorted(done) == ["first CGD_OK", "second CGD_OK"] and last == "handler"


@pytest.mark.parametrize(("mode", "runs"), [("detached", 8), ("exit elsewhere", 3)])
def test_threads_that_embed_while_the_process_ends(host, engines, mode, runs):
    for run_number in range(runs):
        assert run_in({}, host, engines["openvino", "int8"], mode, 7 * run_number) == ""


def test_a_thread_that_opens_while_the_process_ends(host, engine_file):
    assert run_in({}, host, engine_file, "open elsewhere", 2) == ""


def test_a_host_with_a_python_keeps_its_handlers_and_may_end_while_a_thread_calls(python_prefix, fake_engine, tmp_path):
    program = tmp_path / "host.py"
    program.write_text(
        f"""
import ctypes, signal, threading
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
library = ctypes.CDLL({str(python_prefix / "lib" / "libcgd.so.0")!r})
engine = ctypes.c_void_p()
assert library.cgd_engine_open({os.fsencode(fake_engine)!r}, None, ctypes.byref(engine)) == 0
assert handlers == [signal.getsignal(number) for number in signal.valid_signals()]
statuses = [0]
def test_again():
    while statuses[-1] == 0:
        statuses.append(library.cgd_self_test(engine, None))
threading.Thread(target=test_again, daemon=True).start()
while len(statuses) < 20: pass
"""
    )
    for _ in range(3):
        assert run_in({}, sys.executable, program) == ""


def test_a_host_with_a_python_ends_calls_before_it_frees_engines(python_prefix, fake_engine, tmp_path):
    """Engines are freed by finalizers; one that was made later runs first, and its call is refused already."""
    program = tmp_path / "host.py"
    program.write_text(
        f"""
import ctypes, weakref
class Object: pass
library = ctypes.CDLL({str(python_prefix / "lib" / "libcgd.so.0")!r})
engine = ctypes.c_void_p()
assert library.cgd_engine_open({os.fsencode(fake_engine)!r}, None, ctypes.byref(engine)) == 0
after = Object()
library.cgd_status_string.restype = ctypes.c_char_p
weakref.finalize(after, lambda: print(library.cgd_status_string(library.cgd_self_test(engine, None)).decode()))
"""
    )
    assert run_in({}, sys.executable, program) == "CGD_SHUTTING_DOWN\n"
