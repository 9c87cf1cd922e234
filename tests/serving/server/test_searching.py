"""The gallery over HTTP: searched, looked at, changed, and written."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from conftest import FAKE_SPEC
from PIL import Image
from served import jpeg

from cgd_deploy import load, read_index
from cgd_deploy.serving.server.settings import Keys

KEYS = Keys(users=(), admins=(b"boss",))
BOSS = {"Authorization": "Bearer boss"}


@pytest.fixture
def gallery(index_file):
    return read_index(index_file)


def paths(answer):
    return [[one["path"] for one in row] for row in answer.json()["results"]]


def test_the_neighbours_are_those_of_a_plain_loop(serving, gallery, fake_engine):
    answer = serving(gallery).post("/search?k=3", content=jpeg(4))
    assert answer.json()["space_id"] == FAKE_SPEC.space_id
    with load(fake_engine) as engine:
        [query] = engine.embed([jpeg(4)])
    similar = [
        (sum(float(a) * float(b) for a, b in zip(query, row, strict=True)), path)
        for row, path in zip(gallery.descriptors, gallery.paths, strict=True)
    ]
    best = sorted(similar, key=lambda one: -one[0])[:3]
    [row] = answer.json()["results"]
    assert [one["path"] for one in row] == [path for _, path in best]
    assert [one["similarity"] for one in row] == pytest.approx([similarity for similarity, _ in best], abs=1e-5)
    assert "search;dur=" in answer.headers["Server-Timing"]


def test_each_file_of_a_form_is_a_query(serving, gallery):
    files = [("files", (f"{number}.jpg", jpeg(number))) for number in (2, 6)]
    first = [row[0] for row in paths(serving(gallery).post("/search", files=files))]
    assert [path[-5:] for path in first] == ["2.jpg", "6.jpg"]


def test_a_small_gallery_gives_all_it_has(serving, gallery):
    assert len(paths(serving(gallery).post("/search?k=50", content=jpeg(0)))[0]) == 8


def test_more_neighbours_than_allowed_are_refused(serving, gallery):
    answer = serving(gallery, max_neighbours=5).post("/search?k=6", content=jpeg(0))
    assert answer.status_code == 422


def test_without_a_gallery_there_is_no_search(serving):
    answer = serving().post("/search", content=jpeg(0))
    assert answer.status_code == 404
    assert "--index" in answer.json()["error"]["message"]


def test_a_picture_of_the_gallery_is_a_small_jpeg(serving, gallery, photos):
    Image.open(io.BytesIO(jpeg(1, (1000, 600)))).save(photos / "1.jpg")
    client = serving(gallery)
    path = next(path for path in gallery.paths if path.endswith("1.jpg"))
    answer = client.get(f"/index/{path}")
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (320, 192)


@pytest.mark.parametrize("path", ["{photos}/../secret.jpg", "/etc/passwd", "secret.jpg", ""])
def test_files_outside_the_gallery_are_not_shown(serving, gallery, photos, tmp_path, path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(99))
    answer = serving(gallery).get(f"/index/{path.format(photos=photos).replace('..', '%2e%2e')}")
    assert answer.status_code == 404


def test_a_missing_picture_file_is_told(serving, gallery, photos):
    (photos / "1.jpg").unlink()
    path = next(path for path in gallery.paths if path.endswith("1.jpg"))
    assert serving(gallery).get(f"/index/{path}").status_code == 422


def test_put_and_delete_change_the_next_search(serving, gallery, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    client, path = serving(gallery, keys=KEYS), f"{tmp_path}/new/picture.jpg"
    answer = client.put("/index/new/picture.jpg", content=jpeg(40), headers=BOSS)
    assert answer.json() == {"path": path, "pictures": 9, "space_id": FAKE_SPEC.space_id}
    assert paths(client.post("/search?k=1", content=jpeg(40), headers=BOSS)) == [[path]]
    client.put(f"/index/{path}", content=jpeg(41), headers=BOSS)  # the same picture
    assert paths(client.post("/search?k=1", content=jpeg(41), headers=BOSS)) == [[path]]
    assert client.delete("/index/new/picture.jpg", headers=BOSS).json()["pictures"] == 8
    assert client.delete("/index/new/picture.jpg", headers=BOSS).status_code == 404
    assert path not in paths(client.post("/search", content=jpeg(41), headers=BOSS))[0]


def test_a_gallery_may_become_empty_and_grow_again(serving, gallery, index_file, fake_engine):
    client = serving(gallery, keys=KEYS)
    [model] = client.app.state.service.models
    for path in list(gallery.paths):
        assert client.delete(f"/index/{path}", headers=BOSS).status_code == 200
    assert paths(client.post("/search", content=jpeg(0), headers=BOSS)) == [[]]
    asyncio.run(model.gallery.save())
    again = read_index(index_file)
    assert len(again) == 0
    with load(fake_engine) as engine:
        [descriptor] = engine.embed([jpeg(0)])
        assert again.find(engine, descriptor[None], 3) == [[]]
        again.put("a.jpg", descriptor)
        [[(path, similarity)]] = again.find(engine, descriptor[None], 3)
    assert (path, similarity) == ("a.jpg", pytest.approx(1))


def test_put_takes_one_picture(serving, gallery):
    files = [("files", (f"{number}.jpg", jpeg(number))) for number in range(2)]
    assert serving(gallery, keys=KEYS).put("/index/a.jpg", files=files, headers=BOSS).status_code == 422


def test_a_changed_gallery_is_written_and_an_unchanged_one_is_not(serving, gallery, index_file):
    client = serving(gallery, keys=KEYS)
    [model] = client.app.state.service.models
    before = index_file.stat().st_mtime_ns
    asyncio.run(model.gallery.save())
    assert index_file.stat().st_mtime_ns == before
    path = client.put("/index/new.jpg", content=jpeg(40), headers=BOSS).json()["path"]
    asyncio.run(model.gallery.save())
    again = read_index(index_file)
    assert len(again) == 9
    assert again.paths[-1] == path
    assert np.allclose(again.descriptors, gallery.descriptors)


def test_a_gallery_that_cannot_be_written_is_tried_again(serving, gallery, index_file, monkeypatch, caplog):
    from cgd_deploy import InputError
    from cgd_deploy.serving.server import gallery as module

    client = serving(gallery, keys=KEYS)
    [model] = client.app.state.service.models
    client.put("/index/new.jpg", content=jpeg(40), headers=BOSS)

    def full(*_):
        raise InputError("no space left.")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_index", full)
        asyncio.run(model.gallery.save())
    assert "the changed gallery was not written: no space left." in caplog.text
    assert len(read_index(index_file)) == 8
    asyncio.run(model.gallery.save())
    assert len(read_index(index_file)) == 9
