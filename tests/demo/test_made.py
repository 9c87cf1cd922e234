"""Pictures of the demo: the same seed gives the same bytes, and classes can be told apart."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgd_deploy.demo.made import MOVED, SPECIES_PER_GENUS, draw_picture, make_pictures, make_species
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import read_images

CLASSES, PICTURES, SIZE = 4, 3, 48


def made(folder: Path, seed: int = 0) -> dict[str, bytes]:
    make_pictures(folder, classes=CLASSES, pictures_per_class=PICTURES, size=SIZE, seed=seed)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_pictures(tmp_path: Path) -> None:
    first, second, other = made(tmp_path / "a"), made(tmp_path / "b"), made(tmp_path / "c", seed=1)
    assert first == second
    assert first.keys() == other.keys()
    assert [name for name in first if first[name] == other[name]] == ["images.tsv"]
    assert len(set(first.values())) == len(first)


def test_a_class_has_the_same_pictures_however_many_others_there_are(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    make_pictures(few, classes=2, pictures_per_class=2, size=SIZE)
    make_pictures(many, classes=3, pictures_per_class=3, size=SIZE)
    assert (few / "beetle-001" / "001.jpg").read_bytes() == (many / "beetle-001" / "001.jpg").read_bytes()


def test_the_list_names_jpegs_of_varying_size_with_classes_and_without_boxes(tmp_path: Path) -> None:
    images = make_pictures(tmp_path, classes=CLASSES, pictures_per_class=PICTURES, size=SIZE)
    assert images == read_images(tmp_path) == read_images(tmp_path / "images.tsv")
    assert images.names[:PICTURES] == ("beetle-000/000.jpg", "beetle-000/001.jpg", "beetle-000/002.jpg")
    assert images.classes == tuple(name.split("/")[0] for name in images.names)
    assert images.boxes is None
    sizes = []
    for path in images.paths:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            sizes.append(picture.size)
    assert len(set(sizes)) > len(sizes) // 2
    assert all(0.8 * SIZE < side < 1.2 * SIZE for size in sizes for side in size)


def test_the_list_can_move_with_its_folder(tmp_path: Path) -> None:
    make_pictures(tmp_path / "here", classes=1, pictures_per_class=1, size=SIZE)
    moved = (tmp_path / "here").rename(tmp_path / "there")
    assert read_images(moved).path(0).is_file()


def test_species_of_a_genus_are_close_and_never_the_same() -> None:
    points = np.array([astuple(species) for species in make_species(10 * SPECIES_PER_GENUS)])
    assert points.min() >= 0
    assert points.max() < 1
    distances = (np.abs(points[:, None] - points[None, :]) > 1e-9).sum(axis=2)  # coordinates that differ
    genus = np.arange(len(points)) // SPECIES_PER_GENUS
    same_genus = (genus[:, None] == genus[None, :]) & ~np.eye(len(points), dtype=bool)
    assert distances[same_genus].min() > 0
    assert distances[same_genus].max() <= 2 * MOVED
    assert distances[same_genus].mean() < distances[genus[:, None] != genus[None, :]].mean()


def test_a_beetle_looks_more_like_its_class_than_like_another() -> None:
    """Pose, clutter and light average out in the mean picture of half a class; the species stays."""
    species = make_species(6, seed=3)
    means = np.array([[_mean(kind, half) for kind in species] for half in range(2)])  # (2, 6, H, W, 3)
    distances = np.abs(means[0][:, None] - means[1][None, :]).mean(axis=(2, 3, 4))  # (6, 6)
    assert distances.argmin(axis=1).tolist() == list(range(6))


def _mean(species, half: int) -> np.ndarray:
    pictures = [draw_picture(species, 32, np.random.default_rng((half, n))).resize((24, 24)) for n in range(16)]
    return np.mean([np.asarray(picture, np.float32) for picture in pictures], axis=0)


def test_every_picture_is_reported_to_the_caller(tmp_path: Path) -> None:
    calls: list[None] = []
    make_pictures(tmp_path, classes=2, pictures_per_class=2, size=SIZE, on_picture=lambda: calls.append(None))
    assert len(calls) == 4


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"pictures_per_class": 0}, {"size": 31}, {"seed": -1}])
def test_counts_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    arguments = {"classes": 2, "pictures_per_class": 2} | wrong
    name, value = next(iter(wrong.items()))
    with pytest.raises(InputError, match=f"^{name}={value} cannot be used; expected at least"):
        make_pictures(tmp_path / "pictures", **arguments)
    assert not (tmp_path / "pictures").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="cannot write"):
        make_pictures(tmp_path / "taken", classes=1, pictures_per_class=1, size=SIZE)
