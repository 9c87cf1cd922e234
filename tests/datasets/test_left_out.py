"""One behaviour for pictures that cannot be decoded: left out and reported, or refused with --strict."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, write_fake_engine

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.left_out import LeftOut, bad_pictures, without_bad
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList, read_images


def jpeg() -> bytes:
    out = io.BytesIO()
    draw(0, 0).resize((320, 240)).save(out, "JPEG")
    return out.getvalue()


BAD = {
    "cut.jpg": jpeg()[: len(jpeg()) // 2],
    "empty.jpg": b"",
    "text.png": b"no picture",
    "page.jpg": b"<!DOCTYPE html><title>404</title>",
}


@pytest.fixture
def some_bad(tmp_path, monkeypatch, pictures) -> Path:
    """A folder of four classes with good pictures, of which two have bad ones too."""
    monkeypatch.chdir(tmp_path)
    for kind in range(4):
        shutil.copytree(pictures / f"kind-{kind}", f"some/kind-{kind}")
    for kind in (1, 2):
        for name, content in BAD.items():
            Path(f"some/kind-{kind}/{name}").write_bytes(content)
    return Path("some")


def remove_bad() -> None:
    for kind in (1, 2):
        for name in BAD:
            Path(f"some/kind-{kind}/{name}").unlink()


def good_names(folder: Path) -> tuple[str, ...]:
    return tuple(name for name in read_images(folder).names if Path(name).name not in BAD)


def test_every_kind_of_bad_file_is_found(some_bad):
    images = read_images(some_bad)
    assert {images.names[number] for number in bad_pictures(images)} == set(images.names) - set(good_names(some_bad))


def test_the_others_stay_in_order_with_their_classes(some_bad):
    images = read_images(some_bad)
    good, left_out = without_bad(images)
    assert good.names == good_names(some_bad)
    assert good.classes == tuple(Path(name).parts[0] for name in good.names)
    assert [Path(picture.path) for picture in left_out] == [
        some_bad / name for name in images.names if name not in good.names
    ]
    assert all(picture.reason.endswith("replace or remove the file.") for picture in left_out)


def test_a_test_set_keeps_its_roles(some_bad):
    images = read_images(some_bad)
    roles = tuple(number % 2 == 0 for number in range(len(images)))
    good, _ = without_bad(Evaluation(images, roles))
    assert good.images.names == good_names(some_bad)
    assert good.in_gallery == tuple(roles[images.names.index(name)] for name in good.images.names)


def test_a_missing_file_and_a_box_outside_are_bad_too(some_bad):
    images = ImageList(some_bad, ("kind-0/0.jpg", "kind-0/gone.jpg", "kind-0/1.jpg"), None, ((0, 0, 20, 20),) * 3)
    assert set(bad_pictures(images)) == {1}
    outside = ImageList(some_bad, ("kind-0/0.jpg", "kind-0/1.jpg"), None, ((0, 0, 20, 20), (500, 500, 600, 600)))
    good, [left_out] = without_bad(outside)
    assert good.names == ("kind-0/0.jpg",) and "does not cut" in left_out.reason


def test_strict_refuses_the_first_bad_picture(some_bad):
    with pytest.raises(InputError, match=r"kind-1/cut\.jpg cannot be decoded"):
        without_bad(read_images(some_bad), strict=True)


def test_only_bad_pictures_are_refused(some_bad):
    images = ImageList(some_bad, ("kind-1/cut.jpg", "kind-1/text.png"))
    with pytest.raises(InputError, match=r"none of the 2 pictures can be used: .*cut\.jpg cannot be decoded"):
        without_bad(images)
    with pytest.raises(InputError, match=r"^some/kind-1/cut\.jpg cannot be decoded"):
        without_bad(images.subset([0]))


def test_progress_ends_at_one(some_bad):
    told: list[float] = []
    without_bad(read_images(some_bad), on_progress=lambda what, done: told.append(done))
    assert told == sorted(told) and told[-1] == 1.0


def test_a_picture_tells_its_path_once():
    assert str(LeftOut.of(Path("a.jpg"), InputError("a.jpg does not exist; check the path."))) == (
        "left out: a.jpg does not exist; check the path."
    )


@pytest.fixture
def fake(tmp_path) -> Path:
    return write_fake_engine(tmp_path / "fake.cgd")


def test_search_leaves_bad_queries_out_and_lists_them(cli, some_bad, fake):
    assert cli("embed", "some/kind-0", "-e", fake, "-o", "index.npy")[0] == 0
    code, out, err = cli("search", "some/kind-1", "-e", fake, "--index", "index.npy", "-k", "2", "--json")
    facts = json.loads(out)
    found = {Path(fact["query"]).name: fact for fact in facts if "left_out" not in fact}
    assert code == 0 and set(found) == {f"{number}.jpg" for number in range(len(found))} and len(found) > 2
    assert all(len(fact["neighbours"]) == 2 for fact in found.values())
    left_out = {Path(fact["query"]).name: fact for fact in facts if "left_out" in fact}
    assert set(left_out) == set(BAD) and all(fact["neighbours"] == [] for fact in left_out.values())
    assert err.count("left out: ") == len(BAD)


def test_search_finds_what_it_finds_without_the_bad_ones(cli, some_bad, fake):
    cli("embed", "some/kind-0", "-e", fake, "-o", "index.npy")
    with_bad = json.loads(cli("search", "some/kind-1", "-e", fake, "--index", "index.npy", "-k", "2", "--json")[1])
    remove_bad()
    without = json.loads(cli("search", "some/kind-1", "-e", fake, "--index", "index.npy", "-k", "2", "--json")[1])
    assert [fact for fact in with_bad if "left_out" not in fact] == without


def test_strict_search_stops(cli, some_bad, fake):
    cli("embed", "some/kind-0", "-e", fake, "-o", "index.npy")
    code, out, err = cli("search", "some/kind-1", "-e", fake, "--index", "index.npy", "-k", "2", "--strict")
    assert (code, out) == (2, "") and "cut.jpg cannot be decoded" in err and err.count("\n") == 1


def test_search_crops_queries_to_the_boxes_of_their_list(cli, some_bad, fake):
    """As ``embed`` does: the query is the very picture that the index holds."""
    Path("list.tsv").write_text("image\tclass\tx1\ty1\tx2\ty2\nsome/kind-0/0.jpg\ta\t3\t3\t20\t20\n")
    cli("embed", "list.tsv", "-e", fake, "-o", "index.npy")
    code, out, _ = cli("search", "list.tsv", "-e", fake, "--index", "index.npy", "-k", "1", "--json")
    assert code == 0 and json.loads(out)[0]["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)


@pytest.fixture
def model(model_onnx, some_bad) -> str:
    shutil.copy(model_onnx, "model.onnx")
    return "model.onnx"


@pytest.mark.parametrize("option", ["--calib", "--distill", "--data"])
def test_every_list_of_build_engine_is_checked(cli, model, option):
    """The engine is the one that the good pictures alone would make; with --strict there is none."""
    if option == "--distill":
        pytest.importorskip("torch")
    pictures = "some" if option == "--data" else "some/kind-1"
    shutil.move("some/kind-0", "apart")
    build = ["build-engine", model, "--int8", "--backend", "onnxruntime", "--json"]
    build += {"--calib": [], "--distill": ["--distill-steps", "1"], "--data": ["--min-overlap", "0"]}[option]
    build += [] if option == "--calib" else ["--calib", "apart"]
    code, _, err = cli(*build, option, pictures, "-o", "strict.cgd", "--strict")
    assert code == 2 and "cut.jpg cannot be decoded" in err and not Path("strict.cgd").exists()
    code, out, err = cli(*build, option, pictures, "-o", "with.cgd")
    bad = sum(Path(name).name in BAD for name in read_images(pictures).names)
    assert code == 0, err
    assert err.count("left out: ") == bad == len(json.loads(out)["left_out"])
    remove_bad()
    code, out, _ = cli(*build, option, pictures, "-o", "without.cgd")
    assert code == 0 and json.loads(out)["left_out"] == []
    from cgd_deploy.runtime.enginefile import read_engine

    one, other = read_engine("with.cgd"), read_engine("without.cgd")
    assert one.payload == other.payload and one.manifest.source == other.manifest.source
    np.testing.assert_array_equal(one.golden[1], other.golden[1])
