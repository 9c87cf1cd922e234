"""A file is written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import listing

from cgd_deploy.errors import InputError
from cgd_deploy.files import ABANDONED, BLOCK, BLOCKS, replacing, sampled_sha256, sha256_bytes, sha256_file, write_text


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "whole"
    assert listing(tmp_path).keys() == {"new", "new/file.txt"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("hal")
        raise error
    assert path.read_text() == "old"
    assert listing(tmp_path).keys() == {"file.txt"}


def test_a_failed_write_is_told_by_its_target(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*file\.txt: No space left"), replacing(tmp_path / "file.txt"):
        raise OSError(28, "No space left on device")


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        write_text(tmp_path / "folder", "text")
    assert listing(tmp_path).keys() == {"folder"}


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is not a regular file; give the name of a file"):
        write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    path, done, real = tmp_path / "file.txt", [], os.fsync

    def fsync(descriptor: int) -> None:
        there = os.fstat(descriptor)
        parts = [part for part in tmp_path.iterdir() if part.stat().st_ino == there.st_ino]
        done.append((parts[0].read_text() if parts else there.st_ino == tmp_path.stat().st_ino, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "whole")
    assert done == [("whole", False), (True, True)]


def test_bytes_that_do_not_reach_the_disk_get_no_name(tmp_path, monkeypatch):
    path = write_text(tmp_path / "file.txt", "old")

    def fsync(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"cannot write .*file\.txt: Input/output error"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert listing(tmp_path).keys() == {"file.txt"}


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == tmp_path.stat().st_ino:
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert write_text(tmp_path / "file.txt", "text").read_text() == "text"


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    """Each sees its own temporary file; the last one's bytes stay, whole."""
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(5):
            assert list(pool.map(lambda text: write_text(tmp_path / "file.txt", text), texts))
            assert (tmp_path / "file.txt").read_text() in texts
    assert listing(tmp_path).keys() == {"file.txt"}


def test_what_a_killed_writer_left_goes_with_the_next_writer_of_that_name(tmp_path):
    def left(name: str, age: float) -> Path:
        (tmp_path / name).write_text("hal")
        os.utime(tmp_path / name, times=(time.time() - age,) * 2)
        return tmp_path / name

    left(".[a]*.txt.0123abcd.part", 2 * ABANDONED)
    others = {
        left(".[a]*.txt.4567abcd.part", 0.5 * ABANDONED).name: "its writer may live",
        left(".a-b.txt.0123abcd.part", 2 * ABANDONED).name: "another file's",
        left(".[a]*.txt.my.part", 2 * ABANDONED).name: "a user's own",
    }
    write_text(tmp_path / "[a]*.txt", "whole")
    assert listing(tmp_path).keys() == {"[a]*.txt", *others}


@pytest.mark.parametrize("below", ["file/out.txt", "x" * 300])
def test_a_place_that_cannot_be_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / below, "text")


def test_checksums(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    assert sha256_file(tmp_path / "data") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_a_sampled_checksum_reads_a_part_and_sees_size_and_both_ends(tmp_path):
    path = tmp_path / "large"
    data = bytearray(range(256)) * (3 * BLOCKS * BLOCK // 256)
    path.write_bytes(data)
    before = sampled_sha256(path)
    for place in (0, len(data) - 1, BLOCK - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert sampled_sha256(path) != before
    path.write_bytes(data + b"x")
    assert sampled_sha256(path) != before
    for size in (0, 1, BLOCK, BLOCK + 1):
        path.write_bytes(data[:size])
        assert len(sampled_sha256(path)) == 64
