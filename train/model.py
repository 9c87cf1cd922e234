"""The CGD model: one backbone, several global descriptors, one unit vector (CGD section 3).

Knows no pictures, losses or ONNX files; each pooling is exported as one ``cgd::GeM`` node.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cgd_deploy.spec import ModelSpec

from .backbone import build_backbone

MOMENTUM = 0.1
"""Weight of a batch in the running mean of a head's input, as in torch's BatchNorm."""


def unit(vectors: Tensor) -> Tensor:
    """Scale each row of [N, D] to length 1; a zero row stays zero."""
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-12)


class GeM(nn.Module):
    """Generalized-mean pooling [N, C, H, W] -> [N, C]: (mean(max(x, eps)^p))^(1/p).

    p = 1 is SPoC (the plain mean), p = inf is MAC (the maximum); neither clamps. ``learn`` makes p a parameter.
    """

    def __init__(self, p: float, eps: float, learn: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.p: float | nn.Parameter = nn.Parameter(torch.tensor(p)) if learn else p

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.symbolic(
                "cgd::GeM",
                (x,),
                {"p": float(self.p), "eps": self.eps},
                dtype=x.dtype,
                shape=(x.shape[0], x.shape[1]),
                version=1,
            )
        if isinstance(self.p, float) and math.isinf(self.p):
            return x.amax((2, 3))
        if isinstance(self.p, float) and self.p == 1:
            return x.mean((2, 3))
        return x.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)

    def freeze(self) -> None:
        """Replace a learned p by its number; the ONNX node has a number as attribute."""
        if isinstance(self.p, nn.Parameter):
            p = self.p.item()
            del self.p
            self.p = p


class Head(nn.Linear):
    """The linear layer of one descriptor: pooled features [N, C] -> [N, k], without a bias.

    centred   subtract the mean of the pooled features first; False: as in the paper (CGD section 3.1)

    Pooled features are never negative, so they share a large mean. In a head that is not centred, each gradient step
    moves all descriptors along that mean, until they are parallel. Training mode subtracts the mean of the batch, so no
    gradient can move all descriptors in one direction; ``mean`` follows the batches, for eval mode. At export it
    becomes a bias, see ``folded``.
    """

    mean: Tensor | None

    def __init__(self, channels: int, values: int, centred: bool) -> None:
        super().__init__(channels, values, bias=False)
        self.register_buffer("mean", torch.zeros(channels) if centred else None)

    def forward(self, pooled: Tensor) -> Tensor:
        if self.mean is None:
            return super().forward(pooled)
        if not self.training:
            return super().forward(pooled - self.mean)
        mean = pooled.mean(0)
        self.mean.lerp_(mean.detach(), MOMENTUM)
        return super().forward(pooled - mean)

    def folded(self) -> nn.Linear:
        """One linear layer with the same results: W (x - mean) = W x + b with b = -W mean."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.mean is not None)
        layer.weight = self.weight
        if self.mean is not None:
            bias = -(self.weight.detach().double() @ self.mean.double())
            layer.bias = nn.Parameter(bias.float())
        return layer


class CGD(nn.Module):
    """Combination of multiple global descriptors.

    spec     the model as data: backbone, descriptors and dim
    classes  width of the auxiliary classifier on the first descriptor; 0: no classifier, as in deployment
    learn_p  train the exponent of the G branch
    centred  subtract the mean before each descriptor's linear layer, see ``Head``

    Raises SpecError for an unknown backbone or stage.
    """

    def __init__(self, spec: ModelSpec, classes: int = 0, learn_p: bool = False, centred: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec.backbone, spec.no_downsample)
        channels = self.backbone.channels
        share = spec.dim // len(spec.descriptors)
        self.pools = nn.ModuleList(
            GeM(p, spec.gem_eps, learn_p and letter == "G")
            for letter, p in zip(spec.descriptors, spec.branch_p, strict=True)
        )
        self.heads = nn.ModuleList(Head(channels, share, centred) for _ in spec.descriptors)
        self.auxiliary = nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, classes)) if classes else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised images [N, 3, H, W] -> unit descriptors [N, dim] and auxiliary logits [N, classes] or None."""
        return self.described(self.pooled(self.backbone(images)))

    def pooled(self, features: Tensor) -> list[Tensor]:
        """Feature maps [N, C, h, w] -> [N, C] of each of the n branches."""
        return [pool(features) for pool in self.pools]

    def described(self, pooled: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """n pooled vectors [N, C] -> the results of ``forward``."""
        parts = [unit(head(v)) for head, v in zip(self.heads, pooled, strict=True)]  # n x (N, dim / n)
        descriptors = unit(torch.cat(parts, dim=1))  # (N, dim)
        return descriptors, self.auxiliary(pooled[0]) if self.auxiliary is not None else None

    def fold(self) -> None:
        """Replace learned exponents by their numbers and the means of the heads by biases, as export needs them."""
        folded = nn.ModuleList()
        for pool, head in zip(self.pools, self.heads, strict=True):
            assert isinstance(pool, GeM) and isinstance(head, Head)
            pool.freeze()
            folded.append(head.folded())
        self.heads = folded


class DeployModel(nn.Module):
    """The exported model: pixels in, descriptors out, without the auxiliary head."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: CGD) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.spec.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(model.spec.std).view(1, 3, 1, 1) * 255))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """uint8 RGB pixels [N, H, W, 3] -> unit descriptors float32 [N, dim]."""
        return self.model(self.normalized(images))[0]

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 RGB pixels [N, H, W, 3] -> the backbone's input, float32 [N, 3, H, W]."""
        return (images.float().permute(0, 3, 1, 2) - self.mean) * self.scale  # TensorRT cannot transpose uint8
