"""Choose the pictures of each batch of an epoch: P classes with K pictures each. Knows labels, not pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgd_deploy.errors import InputError


def epoch_batches(
    classes: Sequence[str], classes_per_batch: int, pictures_per_class: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of one epoch as indices into ``classes``; the same for the same (seed, epoch).

    Every batch holds ``classes_per_batch`` different classes with ``pictures_per_class`` pictures each, side by side.
    A picture is twice in a batch only if its class has too few pictures. Classes are drawn equally often over the
    epoch, up to one draw, and so are the pictures of a class. An epoch is about one pass over the data, and at least
    one batch.

    Raises InputError if there are fewer classes than a batch needs.
    """
    members: dict[str, list[int]] = {}
    for index, label in enumerate(classes):
        members.setdefault(label, []).append(index)
    if len(members) < classes_per_batch:
        raise InputError(
            f"the training pictures have {len(members)} classes, a batch needs {classes_per_batch}; "
            f"set classes_per_batch to at most {len(members)} or add classes."
        )
    random = np.random.default_rng((seed, epoch))
    labels = _Deck(list(members), random)
    pictures = {label: _Deck(indices, random) for label, indices in members.items()}
    count = max(len(classes) // (classes_per_batch * pictures_per_class), 1)
    return [
        [index for label in labels.draw(classes_per_batch) for index in pictures[label].draw(pictures_per_class)]
        for _ in range(count)
    ]


class _Deck:
    """Draws cards in random order; shuffles all cards again when none are left."""

    def __init__(self, cards: list, random: np.random.Generator) -> None:
        self.cards = cards
        self.random = random
        self.left: list = []

    def draw(self, count: int) -> list:
        """``count`` cards, all different if the deck has so many."""
        hand, self.left = self.left[:count], self.left[count:]
        while len(hand) < count:
            shuffled = [self.cards[i] for i in self.random.permutation(len(self.cards))]
            shuffled.sort(key=hand.__contains__)  # cards in the hand go to the bottom
            needed = count - len(hand)
            hand, self.left = hand + shuffled[:needed], shuffled[needed:]
        return hand
