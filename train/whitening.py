"""Start the descriptors' linear layers as the PCA whitening of the training pictures' pooled features.

Gordo et al. 2016 write PCA as a shift and a fully connected layer. Here the shift is the mean of a centred ``Head``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches

from .model import CGD, DeployModel, Head
from .processes import Processes

SAMPLE = 8192
"""How many training pictures are measured. 2,048 channels need a few thousand."""
BATCH = 64
SHRINKAGE = 0.2
"""Without it, heads amplify directions in which the features hardly vary, and the first steps of training destroy what
they find there. Recall of the untrained model is equal for 0 to 0.3 (30.2 to 30.9 % on CARS196, ResNet-50 at 160)."""


@dataclass(frozen=True)
class Moments:
    """Sums over pooled features, for each of the n descriptors.

    count     number of pictures
    sums      float64 [n, C]
    products  float64 [n, C, C], sums of x x^T
    """

    count: int
    sums: Tensor
    products: Tensor

    @classmethod
    def of(cls, pooled: Tensor) -> Moments:
        """The sums over one batch [N, n, C]."""
        vectors = pooled.detach().double().transpose(0, 1)  # (n, N, C)
        return cls(len(pooled), vectors.sum(1).cpu(), (vectors.mT @ vectors).cpu())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.sums + other.sums, self.products + other.products)

    @property
    def mean(self) -> Tensor:
        """float64 [n, C]"""
        return self.sums / self.count

    @property
    def covariance(self) -> Tensor:
        """float64 [n, C, C]"""
        return self.products / self.count - self.mean[:, :, None] * self.mean[:, None, :]


def whiten_heads(model: CGD, pooled: Iterable[Tensor], processes: Processes, seed: int) -> None:
    """Set weight and mean of each head: outputs have mean 0, covariance 0 and about variance 1 over the pictures.

    pooled   batches of pooled features, [N, n, C], of this process's part of the pictures
    seed     of the rows beyond C, in a head with more outputs than the backbone has channels

    The heads must be centred.
    """
    total = reduce(Moments.__add__, processes.collect(reduce(Moments.__add__, map(Moments.of, pooled))))
    random = torch.Generator().manual_seed(seed)
    for head, mean, covariance in zip(model.heads, total.mean, total.covariance, strict=True):
        assert isinstance(head, Head) and head.mean is not None
        head.mean.copy_(mean)
        rows = whitening(shrunk(covariance), head.out_features, random)
        head.weight.data.copy_(rows)


def whitened(model: CGD, images: ImageList, seed: int = 0) -> CGD:
    """A model with the backbone of ``model``, in eval mode, and with heads that the pictures whiten.

    Measures at most ``SAMPLE`` pictures. Raises InputError if a picture cannot be decoded.
    """
    with torch.random.fork_rng(devices=[]):  # keeps the caller's generator as it is
        made = CGD(model.spec, centred=True).eval()
    made.load_state_dict(model.state_dict(), strict=False)
    deploy = DeployModel(made)
    with torch.no_grad():
        pixels = (torch.from_numpy(pixels) for _, pixels in batches(images.sample(SAMPLE), model.spec, BATCH))
        features = (made.backbone(deploy.normalized(batch)) for batch in pixels)
        pooled = (torch.stack(made.pooled(maps), dim=1) for maps in features)
        whiten_heads(made, pooled, Processes(), seed)
    return made


def whitening(covariance: Tensor, rows: int, random: torch.Generator) -> Tensor:
    """W, float64 [rows, C], with W S W^T = 1 for the covariance S [C, C]: the directions of most variance first.

    There are C such directions. Rows beyond C are random mixtures of them, each with variance 1.
    """
    variances, directions = torch.linalg.eigh(covariance)  # in rising order
    found = (directions / variances.sqrt()).T.flip(0)  # (C, C)
    largest = found.gather(1, found.abs().argmax(dim=1, keepdim=True))
    found *= largest.sign()  # eigh leaves the signs open, and they would differ between runs
    mixtures = torch.randn(max(rows - len(found), 0), len(found), generator=random, dtype=torch.float64)
    mixtures /= torch.linalg.vector_norm(mixtures, dim=1, keepdim=True)
    return torch.cat([found, mixtures @ found])[:rows]


def shrunk(covariance: Tensor) -> Tensor:
    """The covariance [C, C], moved by ``SHRINKAGE`` towards its mean variance; it has an inverse for any pictures."""
    channels = len(covariance)
    mean = max(covariance.trace().item() / channels, 1e-12)  # features that never change have no variance
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * mean * torch.eye(channels, dtype=covariance.dtype)
