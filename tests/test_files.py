"""A file is written whole or not at all."""

from __future__ import annotations

import hashlib

import pytest
from conftest import listing

from cgd_deploy.errors import InputError
from cgd_deploy.files import replacing, sha256_bytes, sha256_file, write_text


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


@pytest.mark.parametrize("below", ["file/out.txt", "x" * 300])
def test_a_place_that_cannot_be_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / below, "text")


def test_checksums(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    assert sha256_file(tmp_path / "data") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()
