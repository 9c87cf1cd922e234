"""Keys and limits of a server."""

from __future__ import annotations

import pytest

from cgd_deploy import InputError
from cgd_deploy.serving.server.settings import ServerSettings, read_keys


def test_a_file_of_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# whose keys these are\n\nuser-1\nboss admin\n  user-2  \n", encoding="utf-8")
    keys = read_keys(path)
    assert all(keys.is_user(key) for key in ("user-1", "user-2", "boss"))
    assert not any(keys.is_user(key) for key in ("#", "", "user", "user-1 ", "admin", "ü"))
    assert [keys.is_admin(key) for key in ("boss", "user-1", "admin")] == [True, False, False]


def test_keys_stay_out_of_what_is_printed(tmp_path):
    path = tmp_path / "keys"
    path.write_text("secret", encoding="utf-8")
    assert "secret" not in repr(read_keys(path)) + repr(ServerSettings(keys=read_keys(path)))
    path.write_text("secret and more", encoding="utf-8")
    with pytest.raises(InputError, match="line 1") as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused(tmp_path, content):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(InputError, match="keys"):
        read_keys(path)


def test_a_missing_file_of_keys_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize(
    "name", ["max_body", "max_pictures", "max_requests", "max_neighbours", "timeout_ms", "save_seconds"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_above_zero(name, value):
    with pytest.raises(InputError, match=name):
        ServerSettings(**{name: value})
