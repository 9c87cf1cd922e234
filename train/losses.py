"""The two losses of CGD, each a function of one batch (CGD sections 3.1 and 3.2). Knows no model and no optimizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cgd_deploy.errors import InputError


def batch_hard_triplet(descriptors: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Ranking loss: mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)  (CGD section 3.1).

    descriptors  unit vectors, float [N, D]; |.| is the Euclidean distance
    targets      class of each, int64 [N]
    p runs over the other pictures of the anchor's class, n over the other classes; an anchor that lacks either does
    not count (Hermans et al. 2017, batch-hard mining).

    Raises InputError if no anchor has both.
    """
    # Differences, not dot products: their gradient is a unit vector at any distance, and torch takes it as 0 at 0.
    distances = torch.cdist(descriptors, descriptors, compute_mode="donot_use_mm_for_euclid_dist")  # (N, N)
    same = targets[:, None] == targets[None, :]
    positive = same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    counts = positive.any(dim=1) & ~same.all(dim=1)
    if not counts.any():
        raise InputError(
            "no picture of the batch has both another of its class and one of another class; "
            "the ranking loss needs at least 2 classes with 2 pictures each."
        )
    hardest_positive = distances.masked_fill(~positive, -torch.inf).amax(dim=1)[counts]
    hardest_negative = distances.masked_fill(same, torch.inf).amin(dim=1)[counts]
    return functional.relu(margin + hardest_positive - hardest_negative).mean()


def auxiliary_classification(logits: Tensor, targets: Tensor, temperature: float, smoothing: float) -> Tensor:
    """Auxiliary loss: cross-entropy of softmax(logits / temperature) with label smoothing  (CGD section 3.2).

    logits   float [N, classes], of the first descriptor only
    targets  int64 [N]; the target distribution is (1 - smoothing) on the class plus smoothing / classes everywhere.
    """
    return functional.cross_entropy(logits / temperature, targets, label_smoothing=smoothing)
