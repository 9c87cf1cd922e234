"""Names of pictures in an index: found again from any folder, and wherever index and pictures move together."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgd_deploy.errors import InputError
from cgd_deploy.search.paths import RULES, index_names, paths_from_here

FILES = ["desk/index/below/a.jpg", "desk/pictures/a.jpg", "desk/..b.jpg", "c.jpg"]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def told(paths: list[str]) -> list[str]:
    return [Path(path).read_text() for path in paths]


@pytest.mark.parametrize("given", ["relative", "absolute"])
@pytest.mark.parametrize("paths_are", RULES)
@pytest.mark.parametrize("folder", ["index", "{0}/index"])
def test_pictures_are_found_from_any_folder(desk, monkeypatch, given, paths_are, folder):
    folder = Path(folder.format(desk))
    here = {"relative": ["index/below/a.jpg", "pictures/a.jpg", "..b.jpg", "../c.jpg"]}
    here["absolute"] = [str(desk / name) for name in here["relative"]]
    names = index_names(here[given], folder, paths_are)
    assert told(paths_from_here(names, folder, paths_are)) == FILES
    for other in ("index/below", "index", "pictures", ".."):
        monkeypatch.chdir(desk / other)
        assert told(paths_from_here(names, desk / "index", paths_are)) == FILES
        if other == "index":
            assert told(paths_from_here(names, Path(), paths_are)) == FILES


def test_relative_names_hold_where_index_and_pictures_move_together(desk, tmp_path, monkeypatch):
    names = index_names(["index/below/a.jpg", str(desk / "pictures/a.jpg")], Path("index"), "relative")
    assert names == ["below/a.jpg", "../pictures/a.jpg"]
    desk.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert told(paths_from_here(names, Path("moved/index"), "relative")) == FILES[:2]


def test_paths_in_the_current_folder_stay_short_and_others_are_absolute(desk):
    names = index_names(["pictures/a.jpg", "../c.jpg"], Path("index"), "relative")
    assert paths_from_here(names, Path("index"), "relative") == ["pictures/a.jpg", str(desk.parent / "c.jpg")]


def test_an_index_that_does_not_say_how_it_names_them_keeps_them(desk):
    assert paths_from_here(["../x/a.jpg"], Path("index"), None) == ["../x/a.jpg"]


def test_other_rules_are_refused(desk):
    with pytest.raises(InputError, match="paths='near' is unknown; expected one of relative, absolute"):
        index_names(["a.jpg"], Path(), "near")
    with pytest.raises(ValueError, match="paths_are is 'near'"):
        paths_from_here(["a.jpg"], Path(), "near")
