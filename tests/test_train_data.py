"""Pixels for training: sizes, seeds, boxes, the cache, and evaluation through the one preprocessing function."""

import numpy as np
import pytest
from PIL import Image

from cgd_deploy.errors import InputError
from cgd_deploy.images import ImageList
from cgd_deploy.preprocess import preprocess
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
    """A random generator that answers as told."""

    def __init__(self, top: int, left: int, flip: bool) -> None:
        self.place, self.flip = (top, left), flip

    def integers(self, low: int, high: int, count: int) -> tuple[int, int]:
        assert (low, high, count) == (0, 5, 2)  # 36 - 32 places and the last
        return self.place

    def random(self) -> float:
        return 0.0 if self.flip else 0.9


def test_a_crop_is_cut_from_the_boxed_picture_at_252_to_224(images):
    pictures = TrainingPictures(images, 32)
    whole = Image.open(images.path(1)).crop((5, 5, 45, 35)).resize((36, 36), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[3:35, 1:33]
    assert np.array_equal(pictures.crop(1, Fixed(3, 1, flip=False)), expected)
    assert np.array_equal(pictures.crop(1, Fixed(3, 1, flip=True)), expected[:, ::-1])


def test_crops_and_flips_vary(images):
    pictures = TrainingPictures(images, 32)
    crops = [pictures.crop(0, np.random.default_rng(i)) for i in range(40)]
    assert len({crop.tobytes() for crop in crops}) > 20
    flipped = sum(int(crop[0, 0, 1]) > int(crop[0, -1, 1]) for crop in crops)  # green grows to the right
    assert 8 < flipped < 32


def batches_of(images, *, seed=0, epoch=1, workers=1, cache_bytes=data.CACHE_BYTES):
    pictures = TrainingPictures(images, 32, cache_bytes)
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
