"""Pixels for training: sizes, seeds, boxes, the cache, and evaluation through the one preprocessing function."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.spec import ModelSpec
from cgd_train import data
from cgd_train.data import EvaluationPictures, TrainingPictures, training_batches

SPEC = ModelSpec(backbone="resnet18", descriptors="SG", dim=8, input_size=(32, 32))


@pytest.fixture
def images(tmp_path) -> ImageList:
    """Four smooth pictures 50x40 with a box each."""
    rows, columns = np.mgrid[0:40, 0:50]
    for i in range(4):
        pixels = np.stack([rows * 5, columns * 4, np.full_like(rows, 60 * i)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return ImageList(tmp_path, tuple(f"{i}.png" for i in range(4)), ("a", "a", "b", "b"), ((5, 5, 45, 35),) * 4)


class Fixed:
    """A random generator that answers as told, and keeps how many places it was asked to choose from."""

    def __init__(self, top: int, left: int, flip: bool) -> None:
        self.places, self.flip = [top, left], flip
        self.choices: list[int] = []

    def integers(self, low: int, high: int) -> int:
        assert low == 0
        self.choices.append(high)
        return self.places.pop(0)

    def random(self) -> float:
        return 0.0 if self.flip else 0.9


def test_a_crop_is_cut_from_the_boxed_picture_at_252_to_224(images):
    pictures = TrainingPictures(images, SPEC)
    whole = Image.open(images.path(1)).crop((5, 5, 45, 35)).resize((36, 36), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[3:35, 1:33]
    assert np.array_equal(pictures.crop(1, Fixed(3, 1, flip=False)), expected)
    assert np.array_equal(pictures.crop(1, Fixed(3, 1, flip=True)), expected[:, ::-1])


def test_a_crop_may_start_everywhere(images):
    random = Fixed(0, 0, flip=False)
    TrainingPictures(images, SPEC).crop(0, random)
    assert random.choices == [5, 5]  # 36 - 32 places and the last


def test_square_crops_are_those_of_earlier_releases(images):
    """A run that was started by release 0.1.0 resumes to the same pictures."""
    pictures = TrainingPictures(images, SPEC)
    whole = pictures.crop(0, Fixed(0, 0, flip=False))
    assert whole.shape == (32, 32, 3)
    for seed in range(50):
        before = np.random.default_rng((seed, 1, 2, 3))
        top, left = before.integers(0, 36 - 32 + 1, 2)
        expected = pictures.crop(0, Fixed(top, left, flip=before.random() < 0.5))
        assert np.array_equal(pictures.crop(0, np.random.default_rng((seed, 1, 2, 3))), expected)


@pytest.mark.parametrize(
    ("resize", "size", "side", "larger"),
    [
        ("pillow-bilinear", (32, 64), None, (36, 72)),
        ("pillow-bicubic", (48, 32), None, (54, 36)),
        ("pillow-bicubic-shorter-32", (32, 32), 36, (36, 36)),  # as far as a crop needs
        ("pillow-bilinear-shorter-40", (32, 32), 40, (36, 36)),  # as far as evaluation resizes
        ("pillow-box-shorter-64", (64, 32), 72, (72, 36)),
    ],
)
def test_crops_follow_the_rule_and_the_shape_of_the_input(images, resize, size, side, larger):
    spec = replace(SPEC, input_size=size, resize=resize)
    random = Fixed(2, 1, flip=False)
    found = TrainingPictures(images, spec).crop(1, random)
    assert random.choices == [larger[0] - size[0] + 1, larger[1] - size[1] + 1]
    boxed = Image.open(images.path(1)).crop((5, 5, 45, 35))  # 40x30
    filter = Image.Resampling[spec.rule.filter.upper()]
    if side is None:
        whole = np.asarray(boxed.resize(larger[::-1], filter))
    else:
        width = int(side * 40 / 30)
        top, left = round((side - larger[0]) / 2), round((width - larger[1]) / 2)
        whole = np.asarray(boxed.resize((width, side), filter))[top : top + larger[0], left : left + larger[1]]
    assert np.array_equal(found, whole[2 : 2 + size[0], 1 : 1 + size[1]])


def test_crops_and_flips_vary(images):
    pictures = TrainingPictures(images, SPEC)
    crops = [pictures.crop(0, np.random.default_rng(i)) for i in range(40)]
    assert len({crop.tobytes() for crop in crops}) > 20
    flipped = sum(int(crop[0, 0, 1]) > int(crop[0, -1, 1]) for crop in crops)  # green grows to the right
    assert 8 < flipped < 32


def batches_of(images, *, seed=0, epoch=1, workers=1, cache_bytes=data.CACHE_BYTES):
    pictures = TrainingPictures(images, SPEC, cache_bytes)
    indices = [[0, 1, 2], [3, 3, 1], [2, 0, 3]]
    return list(training_batches(pictures, indices, seed=seed, epoch=epoch, workers=workers))


def test_batches_depend_on_seed_and_epoch_alone(images):
    expected = batches_of(images)
    assert [(b.shape, b.dtype) for b in expected] == [((3, 32, 32, 3), np.uint8)] * 3
    for same in (batches_of(images, workers=3), batches_of(images, cache_bytes=0)):
        assert all(np.array_equal(a, b) for a, b in zip(same, expected, strict=True))
    for other in (batches_of(images, epoch=2), batches_of(images, seed=1)):
        assert not all(np.array_equal(a, b) for a, b in zip(other, expected, strict=True))


def test_batches_follow_their_indices(images):
    blue = [[int(b) // 60 for b in batch[:, 0, 0, 2]] for batch in batches_of(images, workers=2)]
    assert blue == [[0, 1, 2], [3, 3, 1], [2, 0, 3]]


def test_a_repeated_picture_is_cropped_anew(images):
    repeated = [batches_of(images, seed=seed)[1][:2] for seed in (0, 1)]
    assert not all(np.array_equal(first, second) for first, second in repeated)


@pytest.mark.parametrize(("cache_bytes", "decoded"), [(data.CACHE_BYTES, 4), (4 * 36 * 36 * 3 - 1, 9)])
def test_the_cache_decodes_each_picture_once_if_all_fit(images, monkeypatch, cache_bytes, decoded):
    calls = []
    original = data.decode
    monkeypatch.setattr(data, "decode", lambda *args: calls.append(args) or original(*args))
    batches_of(images, cache_bytes=cache_bytes)
    assert len(calls) == decoded


def test_a_broken_picture_is_named(images):
    images.path(2).write_text("no picture")
    with pytest.raises(InputError, match=r"2\.png cannot be decoded"):
        batches_of(images, workers=2)


@pytest.mark.parametrize("cache_bytes", [data.CACHE_BYTES, 0])
def test_evaluation_pictures_are_preprocessed_like_any_other(images, cache_bytes):
    evaluated = EvaluationPictures(images, SPEC, 3, 2, cache_bytes)
    expected = np.stack([preprocess(images.path(i), SPEC, images.box(i)) for i in range(4)])
    for _ in range(2):
        parts = list(evaluated)
        assert len(evaluated) == 2
        assert [len(part) for part in parts] == [3, 1]
        assert np.array_equal(np.concatenate(parts), expected)


def test_evaluation_pictures_are_read_once_if_all_fit(images):
    evaluated = EvaluationPictures(images, SPEC, 3, 2)
    list(evaluated)
    for path in images.paths:
        path.unlink()
    assert sum(map(len, evaluated)) == 4
