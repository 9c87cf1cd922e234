"""An update leaves an index as a new one would be, and embeds only what is new or has changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_SPEC, draw, listing, write_fake_engine

from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.runtime.engine import load
from cgd_deploy.search import contents, embedding
from cgd_deploy.search.contents import SIZE, UNKNOWN, as_array, as_text, content_of, from_text
from cgd_deploy.search.index import index_images, read_index, sidecar, write_index
from cgd_deploy.search.update import Updated, update_index, why_again
from cgd_deploy.spec import Precision


@pytest.fixture
def engine(fake_engine):
    with load(fake_engine) as engine:
        yield engine


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six pictures."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    for number in range(6):
        draw(0, number).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def embedded(engine, monkeypatch) -> list[str]:
    """The names of the pictures that the engine embeds from now on."""
    seen: list[str] = []
    real = engine.embed_list

    def embed_list(images, *rest):
        seen.extend(path.name for path in images.paths)
        return real(images, *rest)

    monkeypatch.setattr(engine, "embed_list", embed_list)
    return seen


def change(folder: Path) -> None:
    """One picture is new, one is another, one is gone, and one has only another time."""
    draw(1, 7).save(folder / "new.jpg")
    draw(1, 8).save(folder / "2.jpg")
    (folder / "4.jpg").unlink()
    (folder / "1.jpg").touch()


def same(one, other) -> None:
    """The same pictures with the same descriptors, but for float rounding in batches of another size."""
    ours, theirs = np.argsort(one.paths, kind="stable"), np.argsort(other.paths, kind="stable")
    assert [one.paths[row] for row in ours] == [other.paths[row] for row in theirs]
    assert np.allclose(one.descriptors[ours], other.descriptors[theirs], atol=1e-4)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_updated_index_is_as_a_new_one(engine, folder, tmp_path, embedded, suffix, dtype):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"index.{suffix}"
    write_index(index_images(engine, read_images(folder), descriptor_dtype=dtype), path)
    change(folder)
    embedded.clear()
    index = read_index(path)
    updated = update_index(index, engine, read_images(folder))
    assert updated == Updated(added=1, changed=1, removed=1, kept=4)
    assert sorted(embedded) == ["2.jpg", "new.jpg"]
    write_index(index, path)
    expected = index_images(engine, read_images(folder), descriptor_dtype=dtype)
    same(read_index(path), expected)
    embedded.clear()
    again = read_index(path)
    assert update_index(again, engine, read_images(folder)) == Updated(added=0, changed=0, removed=0, kept=6)
    assert embedded == []
    same(again, expected)


def test_a_pca_stays_as_it_was_fitted(engine, folder):
    index = index_images(engine, read_images(folder), pca=3)
    before = index.compact.projection.copy()
    change(folder)
    update_index(index, engine, read_images(folder))
    assert np.array_equal(index.compact.projection, before)
    new = engine.embed([folder / "new.jpg"])
    assert np.allclose(
        index.compact.project(new), index.descriptors[index.paths.index(str(folder / "new.jpg"))], atol=1e-5
    )


def boxed(folder: Path, *boxes: tuple[int, int, int, int]) -> ImageList:
    return ImageList(folder, ("0.jpg",) * len(boxes), boxes=boxes)


def test_boxes_of_one_picture_are_told_apart(engine, folder, embedded):
    a, b, c = (0, 0, 40, 40), (10, 10, 60, 60), (5, 5, 50, 50)
    index = index_images(engine, boxed(folder, a, b, a))
    embedded.clear()
    assert update_index(index, engine, boxed(folder, b, a, a)) == Updated(added=0, changed=0, removed=0, kept=3)
    assert update_index(index, engine, boxed(folder, a, c)) == Updated(added=0, changed=1, removed=1, kept=1)
    assert embedded == ["0.jpg"]
    same(index, index_images(engine, boxed(folder, a, c)))


def test_paths_are_compared_from_any_folder(engine, folder, tmp_path, monkeypatch, embedded):
    path = write_index(index_images(engine, read_images(folder)), tmp_path / "index.npy")
    monkeypatch.chdir(folder)
    embedded.clear()
    assert update_index(read_index(path), engine, read_images("../gallery")).kept == 6
    assert embedded == []


def test_a_picture_that_became_bad_is_left_out_and_told_by_its_number(engine, folder):
    index = index_images(engine, read_images(folder))
    (folder / "3.jpg").write_bytes(b"no picture")
    told = []
    updated = update_index(index, engine, listed(folder), on_error=lambda number, _: told.append(number))
    assert told == [3] and updated == Updated(added=0, changed=0, removed=1, kept=5)
    with pytest.raises(InputError, match=r"3\.jpg"):
        update_index(index, engine, listed(folder))


def listed(folder: Path) -> ImageList:
    return ImageList(folder, tuple(f"{number}.jpg" for number in range(6)))


def test_an_index_of_bad_pictures_alone_is_refused_and_stays(engine, folder):
    index = index_images(engine, read_images(folder))
    for picture in folder.iterdir():
        picture.write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of the 6 pictures could be read; the index was not changed"):
        update_index(index, engine, listed(folder), on_error=lambda *_: None)
    assert len(index) == 6 and not index.changed


def test_pictures_that_are_kept_count_as_done(engine, folder):
    index = index_images(engine, read_images(folder))
    change(folder)
    done = []
    update_index(index, engine, read_images(folder), on_pictures=done.append)
    assert sum(done) == 6


def test_what_was_put_has_no_checksum_and_is_embedded_again(engine, folder, embedded):
    index = index_images(engine, read_images(folder))
    index.put(folder / "1.jpg", engine.embed([folder / "5.jpg"])[0])
    embedded.clear()
    assert update_index(index, engine, read_images(folder)) == Updated(added=0, changed=1, removed=0, kept=5)
    assert embedded == ["1.jpg"]
    same(index, index_images(engine, read_images(folder)))


def test_a_picture_that_cannot_be_read_is_not_the_one_that_was_put(engine, folder):
    index = index_images(engine, read_images(folder))
    index.put(folder / "1.jpg", engine.embed([folder / "5.jpg"])[0])
    (folder / "1.jpg").unlink()
    updated = update_index(index, engine, listed(folder), on_error=lambda *_: None)
    assert updated == Updated(added=0, changed=0, removed=1, kept=5)


def test_reasons_to_embed_everything_again(engine, folder, tmp_path):
    path = write_index(index_images(engine, read_images(folder), descriptor_dtype="int8"), tmp_path / "index.npy")
    index = read_index(path)
    assert why_again(index, engine, "int8", None) is None
    assert why_again(index, engine, "float32", None) == "it keeps int8 and not float32"
    assert why_again(index, engine, "int8", 4) == "it keeps int8 and not int8 with PCA 4"
    other = write_fake_engine(tmp_path / "other.cgd", replace(FAKE_SPEC, space_id="f" * 16))
    with load(other) as foreign:
        assert (
            why_again(index, foreign, "int8", None)
            == f"it describes space {FAKE_SPEC.space_id} and the engine describes {'f' * 16}"
        )
    with load(write_fake_engine(tmp_path / "int8.cgd", precision=Precision.INT8)) as coarse:
        assert why_again(index, coarse, "int8", None) == "it holds fp32 descriptors and the engine makes int8 ones"
    facts = json.loads(sidecar(path).read_text())
    del facts["contents"]
    sidecar(path).write_text(json.dumps(facts))
    old = read_index(path)
    assert why_again(old, engine, "int8", None) == "it has no checksums of its pictures"
    with pytest.raises(InputError, match="cannot be updated: it has no checksums of its pictures; make it again"):
        update_index(old, engine, read_images(folder))


def test_a_picture_that_changes_while_it_is_embedded_has_no_checksum(engine, folder, embedded, monkeypatch):
    monkeypatch.setattr(embedding.time, "time", lambda: 0.0)  # every file has changed since
    index = index_images(engine, read_images(folder))
    assert not index.moment.contents.any()
    monkeypatch.undo()
    assert update_index(index, engine, read_images(folder)).changed == 6


def test_checksums_depend_on_bytes_and_box_alone(folder, tmp_path):
    copy = shutil.copy(folder / "0.jpg", tmp_path / "copy.jpg")
    first = content_of(folder / "0.jpg", None)
    assert len(first) == SIZE and content_of(Path(copy), None) == first != content_of(folder / "1.jpg", None)
    assert len({first, *(content_of(folder / "0.jpg", box) for box in ((0, 0, 9, 9), (0, 0, 9, 8)))}) == 3
    assert content_of(folder / "absent.jpg", None) == UNKNOWN
    assert content_of(folder / "0.jpg", None, before=1.0) == UNKNOWN


def test_checksums_round_trip_as_text():
    array = as_array([bytes(range(16)), UNKNOWN])
    assert array.shape == (2, SIZE) and np.array_equal(from_text(as_text(array)), array)
    assert contents.as_array([]).shape == (0, SIZE)
    with pytest.raises(ValueError):
        from_text("0" * 31)


def test_an_index_whose_checksums_do_not_fit_is_refused(engine, folder, tmp_path):
    path = write_index(index_images(engine, read_images(folder)), tmp_path / "index.npy")
    facts = json.loads(sidecar(path).read_text())
    sidecar(path).write_text(json.dumps({**facts, "contents": facts["contents"][:32]}))
    with pytest.raises(InputError, match="1 checksums for 6 descriptors"):
        read_index(path)


def embed(cli, folder: Path, out: Path, *options: str) -> tuple[dict, str]:
    code, told, err = cli("embed", folder, "-e", folder.parent / "fake.cgd", "-o", out, "--json", *options)
    assert code == 0, err
    return json.loads(told), err


COUNTS = ("added", "changed", "removed", "kept")


def test_the_command_updates_and_tells_what_it_did(cli, fake_engine, folder, tmp_path):
    out = tmp_path / "index.npy"
    told, _ = embed(cli, folder, out, "--update")
    assert [told[name] for name in COUNTS] == [6, 0, 0, 0]
    change(folder)
    told, err = embed(cli, folder, out, "--update")
    assert [told[name] for name in COUNTS] == [1, 1, 1, 4] and told["pictures"] == 6 and err == ""
    code, text, _ = cli("embed", folder, "-e", fake_engine, "-o", out, "--update")
    assert code == 0 and text.endswith("0 left out, 0 added, 0 changed, 0 removed, 6 kept\n")
    assert listing(tmp_path).keys() >= {"index.npy", "index.npy.json"}
    assert not [name for name in listing(tmp_path) if name.endswith((".new", ".part"))]


def test_the_command_embeds_again_in_another_form_and_says_so(cli, fake_engine, folder, tmp_path):
    out = tmp_path / "index.npy"
    embed(cli, folder, out)
    told, err = embed(cli, folder, out, "--update", "--descriptor-dtype", "int8")
    assert "every picture is embedded again, because it keeps float32 and not int8" in " ".join(err.split())
    assert [told[name] for name in COUNTS] == [6, 0, 0, 0] and read_index(out).compact.dtype == "int8"
    told, err = embed(cli, folder, out, "--update")  # keeps the form of the index
    assert [told[name] for name in COUNTS] == [0, 0, 0, 6] and told["descriptor_dtype"] == "int8" and err == ""


@pytest.mark.parametrize("form", [(), ("--descriptor-dtype", "int8")])
def test_the_command_keeps_the_rule_of_paths(cli, fake_engine, folder, tmp_path, form):
    out = tmp_path / "index.npy"
    embed(cli, folder, out, "--paths", "absolute")
    embed(cli, folder, out, "--update", *form)
    assert json.loads(sidecar(out).read_text())["paths_are"] == "absolute"
    embed(cli, folder, out, "--update", "--paths", "relative")
    assert json.loads(sidecar(out).read_text())["paths_are"] == "relative"
    embed(cli, folder, out, "--paths", "absolute")
    embed(cli, folder, out)
    assert json.loads(sidecar(out).read_text())["paths_are"] == "relative"


@pytest.mark.parametrize("option", ["--update", "--ann"])
def test_a_folder_of_shards_is_not_updated(cli, fake_engine, folder, tmp_path, option):
    out = tmp_path / "index.parquet"
    code, _, err = cli("embed", folder, "-e", fake_engine, "-o", out, "--ray", option)
    assert code == 2 and f"{option} is not for --ray" in " ".join(err.split())


def test_an_update_that_fails_leaves_the_old_index(cli, fake_engine, folder, tmp_path):
    out = tmp_path / "index.npy"
    embed(cli, folder, out)
    before = {name: (tmp_path / name).read_bytes() for name in ("index.npy", "index.npy.json")}
    (folder / "2.jpg").write_bytes(b"no picture")
    code, _, _ = cli("embed", folder, "-e", fake_engine, "-o", out, "--update", "--strict")
    assert code == 2
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
