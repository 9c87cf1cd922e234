"""The losses, each a function of one batch (CGD sections 3.1 and 3.2). Knows no model and no optimizer.

A ranking loss takes unit descriptors, float [N, D], and the class of each, int64 [N], and returns a scalar. It raises
InputError if no picture of the batch has both a picture of its class and a picture of another class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from cgd_deploy.errors import InputError, closest_known

RankingLoss = Callable[[Tensor, Tensor], Tensor]


def batch_hard_triplet(descriptors: Tensor, targets: Tensor, margin: float = 0.1) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)  (CGD section 3.1).

    |.| is the Euclidean distance, p runs over the other pictures of the anchor's class, n over the pictures of other
    classes. Anchors without a p or an n are left out (Hermans et al. 2017, batch-hard mining).
    """
    return functional.relu(margin + _hardest_gap(descriptors, targets)).mean()


def soft_margin_triplet(descriptors: Tensor, targets: Tensor) -> Tensor:
    """``batch_hard_triplet`` with log(1 + exp(.)) for max(0, margin + .)  (Hermans et al. 2017, section 2)."""
    return functional.softplus(_hardest_gap(descriptors, targets)).mean()


def semi_hard_triplet(descriptors: Tensor, targets: Tensor, margin: float = 0.1) -> Tensor:
    """Mean over pairs (a, p) of one class of max(0, margin + |a - p| - |a - n|).

    n is the nearest picture of another class that is farther from a than p; if none is, the farthest of all
    (Schroff et al. 2015, section 3.2).
    """
    distances = _distances(descriptors)
    positive, negative = _pairs(targets)
    anchors, positives = torch.nonzero(positive & negative.any(dim=1, keepdim=True), as_tuple=True)
    pairs = distances[anchors, positives]  # (pairs,)
    others = distances[anchors]  # (pairs, N)
    farther = others.masked_fill(~(negative[anchors] & (others > pairs[:, None])), torch.inf).amin(dim=1)
    farthest = others.masked_fill(~negative[anchors], -torch.inf).amax(dim=1)
    return functional.relu(margin + pairs - torch.where(farther.isinf(), farthest, farther)).mean()


def mixed_triplet(descriptors: Tensor, targets: Tensor, margin: float = 0.1) -> Tensor:
    """Half ``batch_hard_triplet``, half the mean of max(0, margin + |a - p| - |a - n|) over all triplets of the batch.

    The second half is what random triplets give on average (Hermans et al. 2017, section 2).
    """
    distances = _distances(descriptors)
    positive, negative = _pairs(targets)
    terms = functional.relu(margin + distances[:, :, None] - distances[:, None, :])  # (N, N, N): a, p, n
    every = positive[:, :, None] & negative[:, None, :]
    return (batch_hard_triplet(descriptors, targets, margin) + terms[every].mean()) / 2


def contrastive(descriptors: Tensor, targets: Tensor, margin: float = 0.5) -> Tensor:
    """Mean over pairs of one class of |a - p|^2, plus mean over the other pairs of max(0, margin - |a - n|)^2.

    Hadsell et al. 2006, equation 4; each mean counts only the terms that are not 0.
    """
    distances = _distances(descriptors)
    positive, negative = _pairs(targets)
    pull = distances[positive].square()
    push = functional.relu(margin - distances[negative]).square()
    return _mean_of_nonzero(pull) + _mean_of_nonzero(push)


def multi_similarity(
    descriptors: Tensor,
    targets: Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """Wang et al. 2019, equations 11 to 13, on cosine similarities s; the mean over anchors of

    log(1 + sum_p exp(-alpha (s_p - base))) / alpha + log(1 + sum_n exp(beta (s_n - base))) / beta
    over the positives with s_p < max_n s_n + epsilon and the negatives with s_n > min_p s_p - epsilon.
    """
    similarities = descriptors @ descriptors.T  # (N, N)
    positive, negative = _pairs(targets)
    hardest_positive = similarities.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
    hardest_negative = similarities.masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)
    pulled = positive & (similarities < hardest_negative + epsilon)
    pushed = negative & (similarities > hardest_positive - epsilon)
    pull = _log_one_plus_sum(-alpha * (similarities - base), pulled) / alpha
    push = _log_one_plus_sum(beta * (similarities - base), pushed) / beta
    return (pull + push).mean()


RANKING_LOSSES: dict[str, Callable[..., Tensor]] = {
    "batch-hard": batch_hard_triplet,
    "semi-hard": semi_hard_triplet,
    "mixed": mixed_triplet,
    "soft-margin": soft_margin_triplet,
    "contrastive": contrastive,
    "multi-similarity": multi_similarity,
}


def ranking_loss(name: str, margin: float | None = None) -> RankingLoss:
    """The ranking loss of that name; with ``margin`` None, its default margin.

    Raises InputError for an unknown name, or a margin for a loss that has none.
    """
    if name not in RANKING_LOSSES:
        raise InputError(f"loss={name!r} is unknown; {closest_known(name, RANKING_LOSSES)}.")
    loss = RANKING_LOSSES[name]
    if margin is None:
        return loss
    if "margin" not in inspect.signature(loss).parameters:
        raise InputError(f"margin={margin!r} cannot be used because the loss {name!r} has no margin; leave margin out.")
    return partial(loss, margin=margin)


def auxiliary_classification(logits: Tensor, targets: Tensor, temperature: float, smoothing: float) -> Tensor:
    """Auxiliary loss: cross-entropy of softmax(logits / temperature) with label smoothing  (CGD section 3.2).

    logits   float [N, classes], of the first descriptor only; the target distribution is (1 - smoothing) on the class
             plus smoothing / classes everywhere.
    """
    return functional.cross_entropy(logits / temperature, targets, label_smoothing=smoothing)


def _hardest_gap(descriptors: Tensor, targets: Tensor) -> Tensor:
    """max_p |a - p| - min_n |a - n| of every anchor that has a p and an n."""
    distances = _distances(descriptors)
    positive, negative = _pairs(targets)
    counts = positive.any(dim=1) & negative.any(dim=1)
    hardest_positive = distances.masked_fill(~positive, -torch.inf).amax(dim=1)[counts]
    hardest_negative = distances.masked_fill(~negative, torch.inf).amin(dim=1)[counts]
    return hardest_positive - hardest_negative


def _distances(descriptors: Tensor) -> Tensor:
    """[N, D] -> [N, N]. Differences, not dot products, so the gradient is a unit vector at any distance, and 0 at 0."""
    return torch.cdist(descriptors, descriptors, compute_mode="donot_use_mm_for_euclid_dist")


def _pairs(targets: Tensor) -> tuple[Tensor, Tensor]:
    """bool [N, N]: which pairs are two pictures of one class, and which are of two classes."""
    same = targets[:, None] == targets[None, :]
    positive = same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    if not (positive.any(dim=1) & ~same.all(dim=1)).any():
        raise InputError(
            "no picture of the batch has both another picture of its class and a picture of another class; "
            "the ranking loss needs at least 2 classes with 2 pictures each."
        )
    return positive, ~same


def _mean_of_nonzero(terms: Tensor) -> Tensor:
    return terms.sum() / (terms > 0).sum().clamp_min(1)


def _log_one_plus_sum(exponents: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + sum of exp over the chosen) of each row of [N, N], without overflow."""
    kept = exponents.masked_fill(~chosen, -torch.inf)
    return torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1).logsumexp(dim=1)
