"""``cgd-deploy duplicates`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import write_fake_engine


@pytest.fixture
def folder(cli, pictures, tmp_path, monkeypatch) -> Path:
    """A folder with an index of six different pictures, of which one has two copies and another has one."""
    monkeypatch.chdir(tmp_path)
    for kind in range(6):
        (tmp_path / "pictures" / f"kind-{kind}").mkdir(parents=True)
        shutil.copy(pictures / f"kind-{kind}" / "0.jpg", tmp_path / "pictures" / f"kind-{kind}" / "0.jpg")
    for copy, kind in (("a.jpg", 1), ("b.jpg", 4), ("c.jpg", 4)):
        shutil.copy(pictures / f"kind-{kind}" / "0.jpg", tmp_path / "pictures" / copy)
    engine = write_fake_engine(tmp_path / "fake.cgd")
    assert cli("embed", "pictures", "-e", engine, "-o", "index.npy")[0] == 0
    return tmp_path


THREE = ["pictures/b.jpg", "pictures/c.jpg", "pictures/kind-4/0.jpg"]
TWO = ["pictures/a.jpg", "pictures/kind-1/0.jpg"]


def test_groups_are_printed_in_blocks_the_largest_first(cli, folder):
    code, out, err = cli("duplicates", "index.npy", "--min-similarity", 0.9999)
    assert (code, err) == (0, "")
    assert out == (
        f"{THREE[0]}\n  1   1.0000  {THREE[1]}\n  2   1.0000  {THREE[2]}\n\n"
        f"{TWO[0]}\n  1   1.0000  {TWO[1]}\n\n"
        "2 groups were found, with 5 of 9 pictures\n"
    )


def test_json_lists_the_pictures_of_each_group(cli, folder):
    code, out, err = cli("duplicates", "index.npy", "--min-similarity", 0.9999, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {"pictures": [{"path": path, "similarity": pytest.approx(1, abs=1e-4)} for path in group]}
        for group in (THREE, TWO)
    ]


def test_the_page_shows_every_picture_of_another_folder(cli, folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    code, _, err = cli("duplicates", "../index.npy", "--min-similarity", 0.9999, "--html", "made/found.html")
    assert (code, err) == (0, "")
    page = Path("made/found.html").read_text()
    assert "<h1>Near-duplicates in ../index.npy</h1>" in page and "cannot<br>be opened" not in page
    assert page.count("<h3>Picture</h3>") == page.count("<h3>Near-duplicates</h3>") == 2 and "Query" not in page
    assert page.count("<symbol ") == 5


def test_no_near_duplicates_are_none(cli, folder):
    assert cli("embed", *Path("pictures").glob("kind-*"), "-e", "fake.cgd", "-o", "other.npy")[0] == 0
    found = cli("duplicates", "other.npy", "--min-similarity", 1, "--html", "found.html")
    assert found == (0, "0 groups were found, with 0 of 6 pictures\n", "")
    assert Path("found.html").is_file()
    assert cli("duplicates", "other.npy", "--min-similarity", 1, "--json")[1] == "[]\n"


def test_without_a_limit_it_is_as_the_help_says(cli, folder):
    assert "[default: 0.95]" in cli("duplicates", "--help")[1]
    assert cli("duplicates", "index.npy")[1] == cli("duplicates", "index.npy", "--min-similarity", 0.95)[1]


@pytest.mark.parametrize("limit", ["0", "1.5", "nan"])
def test_a_limit_that_is_no_cosine_is_refused_before_the_index_is_read(cli, limit):
    code, out, err = cli("duplicates", "missing.npy", "--min-similarity", limit)
    limit = str(float(limit))
    told = f"cgd-deploy: a smallest similarity of {limit} cannot be used; pass a cosine above 0 and at most 1.\n"
    assert (code, out, err) == (2, "", told)


def test_a_missing_index_is_one_line(cli):
    code, out, err = cli("duplicates", "missing.npy")
    assert (code, out, err.count("\n")) == (2, "", 1) and "missing.npy is not an index" in err
