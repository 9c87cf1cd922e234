"""A folder of shards: whole or refused, whoever wrote it and however often."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from cgd_deploy.errors import InputError
from cgd_deploy.search.compact import DTYPES, Compact
from cgd_deploy.search.index import read_index
from cgd_deploy.search.shards import RUN, Run, Shard, Shards

DIM = 24
THE_RUN = Run(
    pictures=50,
    shard=16,
    root="pictures",
    list_sha256="a" * 64,
    engine_sha256="b" * 64,
    space_id="c" * 16,
    precision="int8",
    dim=DIM,
    descriptor_dtype="float32",
    fast_decode=False,
)


def gallery(run: Run) -> np.ndarray:
    values = np.random.default_rng(1).normal(size=(run.pictures, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def write(shards: Shards, part: range, left_out: tuple[int, ...] = ()) -> None:
    kept = [number for number in part if number not in left_out]
    stored = Compact(shards.run.descriptor_dtype, DIM).store(gallery(shards.run)[kept])
    bad = {number: f"{number}.jpg is bad." for number in part if number in left_out}
    shard = Shard(left_out=bad, files_sha256="e" * 64, paths_are="relative", statement="safe to mix")
    shards.write(part, stored, [str(shards.folder / f"{number}.jpg") for number in kept], shard)


@pytest.fixture
def shards(tmp_path) -> Shards:
    shards = Shards(tmp_path / "index.parquet", THE_RUN)
    shards.begin()
    return shards


def refused(shards: Shards, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_index(shards.folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_ranges_cover_the_list_once():
    assert THE_RUN.ranges == [range(0, 16), range(16, 32), range(32, 48), range(48, 50)]
    for pictures in range(1, 40):
        ranges = replace(THE_RUN, pictures=pictures, shard=7).ranges
        assert [number for part in ranges for number in part] == list(range(pictures))


@pytest.mark.parametrize("change", [{"shard": 0}, {"pictures": 0}])
def test_a_run_of_nothing_is_refused(change):
    with pytest.raises(InputError, match="at least 1 of each"):
        replace(THE_RUN, **change)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shards_are_one_index_in_the_order_of_the_list(tmp_path, dtype):
    shards = Shards(tmp_path / "index.parquet", replace(THE_RUN, descriptor_dtype=dtype))
    shards.begin()
    for part in reversed(shards.run.ranges):
        write(shards, part, left_out=(17, 18))
    index = read_index(shards.folder)
    kept = [number for number in range(50) if number not in (17, 18)]
    assert list(index.paths) == [str(shards.folder / f"{number}.jpg") for number in kept]
    assert np.array_equal(index.stored, Compact(dtype, DIM).store(gallery(THE_RUN)[kept]))
    assert (index.space_id, index.precision, index.compact.dtype) == ("c" * 16, "int8", dtype)
    assert index.statement == "safe to mix"
    assert shards.done()[range(16, 32)].left_out == {17: "17.jpg is bad.", 18: "18.jpg is bad."}


def test_other_readers_see_one_table(shards):
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in THE_RUN.ranges:
        write(shards, part)
    table = parquet.read_table(shards.folder)
    assert table["path"].to_pylist() == [f"{number}.jpg" for number in range(50)]
    alone = read_index(shards.path(range(16, 32)))
    assert list(alone.paths) == [str(shards.folder / f"{number}.jpg") for number in range(16, 32)]


def test_shards_of_release_0_1_0_are_read(shards):
    """Their footers say nothing of picture files, statements or paths, which are as the user gave them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in THE_RUN.ranges:
        write(shards, part, left_out=(17,))
        table = parquet.read_table(shards.path(part))
        facts = json.loads(table.schema.metadata[b"cgd"])
        for name in ("files_sha256", "paths_are", "statement"):
            del facts[name]
        parquet.write_table(table.replace_schema_metadata({"cgd": json.dumps(facts)}), shards.path(part))
    assert list(read_index(shards.folder).paths) == [f"{number}.jpg" for number in range(50) if number != 17]
    assert shards.done()[range(16, 32)] == Shard(
        left_out={17: "17.jpg is bad."}, files_sha256=None, paths_are=None, statement=None
    )


@pytest.mark.parametrize("part", THE_RUN.ranges)
def test_a_shard_of_which_nothing_could_be_read_is_a_shard(shards, part):
    for one in THE_RUN.ranges:
        write(shards, one, left_out=tuple(part))
    assert len(read_index(shards.folder).paths) == 50 - len(part)
    assert len(shards.done()[part].left_out) == len(part)


def test_a_missing_shard_is_refused_and_known(shards):
    for part in THE_RUN.ranges[:2]:
        write(shards, part)
    assert list(shards.done()) == THE_RUN.ranges[:2]
    refused(shards, r"lacks 2 of its 4 shards; run the same `cgd-deploy embed --ray` again")


def test_one_bit_that_fell_over_is_found(shards):
    """A page's checksum covers descriptors and paths."""
    for part in THE_RUN.ranges:
        write(shards, part)
    path = shards.path(range(16, 32))
    whole = path.read_bytes()
    value = gallery(THE_RUN)[20].tobytes()
    found = 0
    for place in (whole.find(value[:16]), whole.find(b"21.jpg")):
        if place >= 0:
            found += 1
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            refused(shards, "CRC")
    assert found, "the values are somewhere in the file"


@pytest.mark.parametrize("size", [0, 4, -7])
def test_a_cut_shard_is_refused(shards, size):
    for part in THE_RUN.ranges:
        write(shards, part)
    path = shards.path(range(32, 48))
    path.write_bytes(path.read_bytes()[:size])
    refused(shards, r"0000000032-0000000047\.parquet is damaged .*remove it")


@pytest.mark.parametrize("change", [{"engine_sha256": "d" * 64}, {}], ids=["run", "range"])
def test_a_shard_of_another_run_or_range_is_refused(shards, tmp_path, change):
    for part in THE_RUN.ranges:
        write(shards, part)
    other = Shards(tmp_path / "other.parquet", replace(THE_RUN, **change))
    other.begin()
    source = range(16, 32) if change else range(0, 16)
    write(other, source)
    shards.path(range(16, 32)).write_bytes(other.path(source).read_bytes())
    refused(shards, "0000000016-0000000031.parquet belongs to another run or range; remove it")


def test_a_table_that_is_no_shard_is_refused(shards):
    for part in THE_RUN.ranges:
        write(shards, part)
    (shards.folder / "copy.parquet").write_bytes(shards.path(range(0, 16)).read_bytes())
    refused(shards, r"copy\.parquet is not a shard of this run; move it out")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not a folder of cgd-deploy embed --ray"), ("[]", "embed --ray"), ('{"schema": 2}', "another release")],
)
def test_a_folder_of_something_else_is_no_index(shards, text, message):
    (shards.folder / RUN).write_text(text)
    refused(shards, message)
    (shards.folder / RUN).unlink()
    refused(shards, "embed --ray")


@pytest.mark.parametrize("name", Run.__dataclass_fields__)
def test_runs_that_differ_in_anything_do_not_share_a_folder(shards, name):
    value = getattr(THE_RUN, name)
    other = replace(THE_RUN, **{name: f"{value}x" if isinstance(value, str) else value + 1})
    before = (shards.folder / RUN).read_bytes()
    with pytest.raises(InputError, match=f"holds another run, whose {name} is {value}"):
        Shards(shards.folder, other).begin()
    assert (shards.folder / RUN).read_bytes() == before
    Shards(shards.folder, replace(other, **{name: value})).begin()


def test_a_folder_with_other_files_and_a_file_are_left_alone(tmp_path):
    (tmp_path / "holidays.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="holds other files"):
        Shards(tmp_path, THE_RUN).begin()
    with pytest.raises(InputError, match="is a file"):
        Shards(tmp_path / "holidays.jpg", THE_RUN).begin()
    assert os.listdir(tmp_path) == ["holidays.jpg"]


def test_a_folder_that_a_killed_driver_had_only_just_made_is_taken(tmp_path):
    (tmp_path / f".{RUN}.0123abcd.part").write_bytes(b"{")
    Shards(tmp_path, THE_RUN).begin()
    assert json.loads((tmp_path / RUN).read_text())["pictures"] == 50


def test_tries_are_counted_until_a_shard_is_whole_or_a_driver_begins(shards):
    one, other = THE_RUN.ranges[:2]
    assert [shards.begin_shard(one), shards.begin_shard(one), shards.begin_shard(other)] == [1, 2, 1]
    [line, _] = (shards.folder / ".0000000000-0000000015.tries").read_text().splitlines()
    assert line == f"{os.uname().nodename} {os.getpid()}"
    write(shards, one)
    shards.begin()
    assert shards.begin_shard(other) == 1


def test_what_killed_writers_left_is_removed_in_the_end(shards):
    left = shards.folder / ".0000000000-0000000015.parquet.0123abcd.part"
    left.write_bytes(b"PAR1")
    for part in THE_RUN.ranges:
        write(shards, part)
    assert left.exists()  # it may be somebody's who is not dead
    shards.end()
    assert set(os.listdir(shards.folder)) == {RUN, *(shards.path(part).name for part in THE_RUN.ranges)}


def test_a_full_folder_is_told(shards, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device", "x")))
    with pytest.raises(InputError, match="No space left on device"):
        write(shards, THE_RUN.ranges[0])
    assert list(shards.done()) == []


@pytest.mark.parametrize("name", ["._0000000000-0000000015.parquet", "Thumbs.db", "lost+found", ".DS_Store"])
def test_what_systems_leave_behind_is_no_shard_and_no_other_file(tmp_path, name):
    shards = Shards(tmp_path / "index.parquet", THE_RUN)
    shards.folder.mkdir()
    (shards.folder / name).write_bytes(b"\0\5\26\7")
    shards.begin()
    for part in THE_RUN.ranges:
        write(shards, part)
    assert len(read_index(shards.folder).paths) == THE_RUN.pictures
