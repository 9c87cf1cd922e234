"""Commands print no traceback if their output cannot be written or a file name cannot be printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import draw, write_fake_engine

from cgd_deploy.cli import stdio
from cgd_deploy.errors import InputError

FULL = Path("/dev/full")
NO_SPACE = "cgd-deploy: cannot write to standard output: No space left on device; redirect it to another place.\n"
NAMES = ("käse☃.jpg", os.fsdecode(b"\xe9.jpg"))

needs_full = pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine, pictures of unusual names, a bad picture, and an index of the good ones."""
    desk = tmp_path_factory.mktemp("desk")
    write_fake_engine(desk / "fake.cgd")
    (desk / "some").mkdir()
    for number in range(3):
        draw(0, number).save(desk / "some" / f"{number}.jpg")
    try:
        for kind, name in enumerate(NAMES, start=1):
            draw(kind, 0).save(os.fsencode(desk / "some" / name))
        (desk / "some" / os.fsdecode(b"bad\xe9.jpg")).write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    subprocess.run([*COMMAND, *EMBED], cwd=desk, check=True, capture_output=True)
    return desk


COMMAND = [sys.executable, "-m", "cgd_deploy"]
EMBED = ["embed", "some", "-e", "fake.cgd", "-o", "index.npy"]
SEARCH = ["search", "some/[k]*.jpg", "-e", "fake.cgd", "--index", "index.npy", "-k", "5"]


def run(desk: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, bytes, bytes]:
    done = subprocess.run([*COMMAND, *arguments], cwd=desk, capture_output=True, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


ESCAPED, CP1252, UTF8 = rb"some/k\xe4se\u2603.jpg", b"some/k\xe4se\\u2603.jpg", "some/käse☃.jpg".encode()
TERMINALS = [
    ({"PYTHONIOENCODING": "ascii"}, ESCAPED),
    ({"PYTHONIOENCODING": "ascii:strict"}, ESCAPED),
    ({"PYTHONIOENCODING": "cp1252"}, CP1252),
    ({"PYTHONIOENCODING": "latin-1:strict"}, CP1252),
    ({"PYTHONIOENCODING": "utf-8:strict"}, UTF8),
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ESCAPED),
]


@pytest.mark.parametrize(
    ("terminal", "name"), TERMINALS, ids=[" ".join(terminal.values()) for terminal, _ in TERMINALS]
)
def test_any_name_is_printed_in_any_encoding(terminal, name, desk):
    code, out, err = run(desk, *SEARCH, environment=terminal)
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, b"", 6)
    assert lines[1] == b"  1   1.0000  " + name
    assert sum(line.endswith(b"some/\xe9.jpg") for line in lines) == 1


def test_bad_pictures_of_any_name_are_told_and_json_stays_json(desk):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    code, out, err = run(desk, *EMBED, "--json", environment=ascii_only)
    assert code == 0 and rb"left out: some/bad\udce9.jpg cannot be decoded" in err
    assert json.loads(out.decode("ascii"))["left_out"][0]["path"] == "some/bad\udce9.jpg"
    code, out, _ = run(desk, *SEARCH, "--json", environment=ascii_only)
    assert code == 0 and json.loads(out.decode("ascii"))[0]["query"] == "some/käse☃.jpg"
    code, _, err = run(desk, "inspect", "käse☃.cgd", environment=ascii_only)
    assert (
        code == 2 and err.startswith(rb"cgd-deploy: there is no engine at k\xe4se\u2603.cgd") and err.count(b"\n") == 1
    )


def into(desk: Path, arguments: list[str], redirection: str, **environment: str) -> tuple[int, str, str]:
    """Run through a shell with a redirection, or piped into another command."""
    line = subprocess.list2cmdline([*COMMAND, *arguments])
    script = f"{line} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=desk, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


PRINTING = {
    "inspect": ["inspect", "fake.cgd"],
    "help": ["--help"],
    "version": ["--version"],
    "json": [*SEARCH, "--json"],
    "doctor": ["doctor"],
}


@needs_full
@pytest.mark.parametrize("what", PRINTING)
def test_a_full_disk_behind_stdout_is_one_sentence(what, desk):
    assert into(desk, PRINTING[what], "> /dev/full") == (2, "", NO_SPACE)


@needs_full
@pytest.mark.parametrize("environment", [{"PYTHONUNBUFFERED": "1"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_full_disk_is_the_same_without_a_buffer_and_in_ascii(environment, desk):
    for what in ("inspect", "help"):
        assert into(desk, PRINTING[what], "> /dev/full", **environment) == (2, "", NO_SPACE)


@needs_full
def test_the_first_error_keeps_its_sentence_and_status(desk):
    code, _, err = into(desk, ["inspect", "absent.cgd"], "> /dev/full")
    assert code == 2 and err.startswith("cgd-deploy: there is no engine at absent.cgd") and err.count("\n") == 1
    assert into(desk, ["inspect", "absent.cgd"], "2> /dev/full") == (2, "", "")
    assert into(desk, ["inspect", "fake.cgd"], "> /dev/full 2> /dev/full") == (2, "", "")


@needs_full
@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-"])
def test_messages_that_nobody_can_get_stop_no_work(redirection, desk):
    code, out, err = into(desk, EMBED, redirection)
    assert (code, err) == (0, "") and out.endswith("96 bytes a descriptor, 1 left out\n")


@pytest.mark.parametrize("what", PRINTING)
def test_a_closed_pipe_ends_quietly_as_by_sigpipe(what, desk):
    assert into(desk, PRINTING[what], "| true", PYTHONUNBUFFERED="1") == (stdio.CLOSED_PIPE, "", "")


def test_a_pipe_that_closes_before_the_buffer_is_written(desk):
    assert into(desk, PRINTING["inspect"], "| exec 0<&-") == (stdio.CLOSED_PIPE, "", "")


def test_a_closed_stdout_takes_nothing(desk):
    assert into(desk, PRINTING["inspect"], ">&-") == (0, "", "")


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make stdout of this process a file descriptor."""

    def replace(descriptor: int) -> None:
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        monkeypatch.setattr(sys, "stdout", open(descriptor, "w", closefd=False))  # noqa: SIM115

    return replace


@needs_full
def test_it_fails_once_and_then_takes_everything(replaced):
    with FULL.open("wb", buffering=0) as full:
        replaced(full.fileno())
        stdio.take_over()
        print("lost")
        with pytest.raises(InputError, match="cannot write to standard output"):
            sys.stdout.flush()
        print("lost too", flush=True)


def test_streams_of_somebody_else_stay(capsys):
    before = sys.stdout, sys.stderr
    stdio.take_over()
    assert (sys.stdout, sys.stderr) == before
