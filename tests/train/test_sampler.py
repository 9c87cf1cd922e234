"""Batches of P classes x K pictures."""

from collections import Counter

import pytest

from cgd_deploy.errors import InputError
from cgd_train.sampler import epoch_batches

CLASSES = [f"c{i % 7}" for i in range(70)]  # 7 classes with 10 pictures each


def draw(classes=CLASSES, p=3, k=4, seed=0, epoch=1):
    return epoch_batches(classes, p, k, seed=seed, epoch=epoch)


def test_every_batch_has_p_classes_with_k_different_pictures():
    for batch in draw():
        assert len(set(batch)) == len(batch) == 12
        for start in range(0, 12, 4):
            assert len({CLASSES[i] for i in batch[start : start + 4]}) == 1
        assert Counter(CLASSES[i] for i in batch) == {CLASSES[i]: 4 for i in batch}


def test_an_epoch_is_about_one_pass_and_at_least_one_batch():
    assert len(draw()) == 70 // 12
    assert len(draw(p=7, k=20)) == 1


def test_classes_and_pictures_are_covered_evenly():
    batches = draw(p=2, k=5)  # 7 batches of 2 classes: each class twice
    assert set(Counter(CLASSES[batch[i]] for batch in batches for i in (0, 5)).values()) == {2}
    assert set(Counter(i for batch in batches for i in batch).values()) == {1}


@pytest.mark.parametrize(("p", "k"), [(3, 4), (5, 3), (6, 2), (7, 6)])
def test_no_class_leads_another_by_more_than_one(p, k):
    seen = Counter(dict.fromkeys(CLASSES, 0))
    for batch in draw(p=p, k=k):
        seen.update({CLASSES[i] for i in batch})
        assert max(seen.values()) - min(seen.values()) <= 1


def test_a_small_class_repeats_its_pictures_evenly():
    batch = draw(["a"] * 2 + ["b"] * 9, p=2, k=5)[0]
    assert sorted(Counter(i for i in batch if i < 2).values()) == [2, 3]
    assert len({i for i in batch if i >= 2}) == 5


def test_seed_and_epoch_decide_everything():
    assert draw() == draw()
    assert draw() != draw(epoch=2)
    assert draw() != draw(seed=1)


def test_too_few_classes_are_refused():
    with pytest.raises(InputError, match="have 7 classes, a batch needs 8; set classes_per_batch to at most 7"):
        draw(p=8)
