"""TrainConfig: the settings of a training run and their limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cgd_deploy.errors import InputError
from cgd_deploy.spec import IMAGENET_MEAN, IMAGENET_STD, STRETCH, ModelSpec

AMP = ("off", "bf16", "fp16")
HEAD_INIT = ("whitened", "random")
SCHEDULES = ("step", "cosine")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Where a default is not the paper's (CGD section 4.1), the paper's value stands in brackets.

    data                folder of a data set (``cgd_deploy.datasets``) or LIST.tsv; may be None if ``train`` gets lists
    weights             file to start the backbone from, as ``foreign`` reads it, or the word "torchvision" for ImageNet
                        weights that ``pretrained`` downloads; None: random
    size                height and width of the model's input; one number for a square
    resize              how pictures are resized to ``size``, see ``cgd_deploy.resize.ResizeRule``
    mean, std           mean and deviation of each channel, for pixels divided by 255
    out                 folder for best.pt, last.pt and metrics.jsonl
    boxes               crop the pictures to the boxes of the data set, where it has any
    learn_p             train the exponent of the G branch
    head_init           start of the descriptors' linear layers: "whitened" (``whitening``) or "random"; None: whitened
                        exactly when ``weights`` is given and the heads are centred [random]
    centred             subtract the mean before those layers, see ``model.Head`` [False]
    lr                  Adam's learning rate
    head_lr             its factor for the descriptors' linear layers
    auxiliary_lr        its factor for the classifier of the auxiliary loss [1]
    schedule            "cosine" or "step", see ``schedule.learning_rate`` [step]
    classes_per_batch, pictures_per_class   a batch has the product of both pictures [32 and 4]
    warm_up             epochs at the start that freeze ``weights`` and train only the new layers, because the random
                        classifier has large gradients [0]
    evaluate_every      measure on the test pictures every so many epochs, and after the last one
    accumulate          number of parts in which a batch passes through the backbone; the losses see the whole batch
    amp                 arithmetic of the backbone in training: "off", "bf16" or "fp16"
    loss, margin        name of the ranking loss; its margin, None for the default of that loss
    ranking_weight, auxiliary_weight   weights of the two losses in their sum
    auxiliary           add the classification loss on the first descriptor
    train_from          first backbone stage to train, for example "layer4"; the stages before it stay frozen
    freeze_bn           keep the backbone's BatchNorm statistics; None: exactly when ``weights`` is given
    patience            stop after this many epochs without a better recall@1; None: do not stop early
    device, threads     None: the GPU if there is one, and as many threads as torch takes
    resume              continue from last.pt in ``out``
    strict              stop at the first picture that cannot be decoded; otherwise leave such pictures out

    Raises InputError or SpecError that names the field and its value.
    """

    data: str | Path | None = None
    boxes: bool = True
    backbone: str = "resnet50"
    weights: Path | None = None
    descriptors: str = "SG"
    dim: int = 1536
    size: int | tuple[int, int] = 224
    resize: str = STRETCH
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    no_downsample: str = "layer4"
    gem_p: float = 3.0
    learn_p: bool = False
    head_init: str | None = None
    centred: bool = True
    epochs: int = 20
    lr: float = 1e-4
    head_lr: float = 1.0
    auxiliary_lr: float = 10.0
    schedule: str = "cosine"
    classes_per_batch: int = 32
    pictures_per_class: int = 2
    warm_up: int = 1
    accumulate: int = 1
    amp: str = "off"
    loss: str = "batch-hard"
    margin: float | None = None
    ranking_weight: float = 1.0
    auxiliary_weight: float = 1.0
    temperature: float = 0.5
    smoothing: float = 0.1
    auxiliary: bool = True
    train_from: str | None = None
    freeze_bn: bool | None = None
    patience: int | None = None
    evaluate_every: int = 1
    seed: int = 0
    out: Path = Path("runs/cgd")
    device: str | None = None
    threads: int | None = None
    resume: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        limits = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "lr": (0 < self.lr < math.inf, "positive"),
            "head_lr": (0 < self.head_lr < math.inf, "positive"),
            "head_init": (self.head_init in (None, *HEAD_INIT), " or ".join(HEAD_INIT)),
            "auxiliary_lr": (0 < self.auxiliary_lr < math.inf, "positive"),
            "schedule": (self.schedule in SCHEDULES, " or ".join(SCHEDULES)),
            "evaluate_every": (self.evaluate_every >= 1, "at least 1"),
            "classes_per_batch": (self.classes_per_batch >= 2, "at least 2"),
            "pictures_per_class": (self.pictures_per_class >= 2, "at least 2"),
            "warm_up": (self.warm_up >= 0, "0 or more"),
            "accumulate": (1 <= self.accumulate <= self.batch, f"from 1 to the batch of {self.batch}"),
            "amp": (self.amp in AMP, " or ".join(AMP)),
            "margin": (self.margin is None or self.margin >= 0, "0 or more"),
            "ranking_weight": (0 <= self.ranking_weight < math.inf, "0 or more"),
            "auxiliary_weight": (0 <= self.auxiliary_weight < math.inf, "0 or more"),
            "temperature": (self.temperature > 0, "positive"),
            "smoothing": (0 <= self.smoothing < 1, "0 or more and below 1"),
            "patience": (self.patience is None or self.patience >= 1, "at least 1"),
            "seed": (self.seed >= 0, "0 or more"),
            "threads": (self.threads is None or self.threads >= 1, "at least 1"),
        }
        for field, (holds, expected) in limits.items():
            if not holds:
                raise InputError(f"{field}={getattr(self, field)!r} cannot be used; expected {expected}.")
        if isinstance(self.size, tuple) and len(set(self.size)) == 1:
            object.__setattr__(self, "size", self.size[0])  # so that a run started with one number can resume
        if self.whitens and not self.centred:
            raise InputError("head_init='whitened' needs centred heads; leave centring on, or set head_init='random'.")
        self.spec  # noqa: B018 - checks the model's fields
        for field in ("weights", "out"):
            if isinstance(path := getattr(self, field), str):
                object.__setattr__(self, field, Path(path))

    @property
    def batch(self) -> int:
        """Number of pictures in a batch, over all processes."""
        return self.classes_per_batch * self.pictures_per_class

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            backbone=self.backbone,
            descriptors=self.descriptors,
            dim=self.dim,
            no_downsample=self.no_downsample,
            gem_p=self.gem_p,
            input_size=self.size if isinstance(self.size, tuple) else (self.size, self.size),
            resize=self.resize,
            mean=self.mean,
            std=self.std,
        )

    @property
    def whitens(self) -> bool:
        """Whether the heads start as the whitening of the training pictures' features."""
        return self.head_init == "whitened" or (self.head_init is None and self.centred and self.weights is not None)

    @property
    def bn_is_frozen(self) -> bool:
        return self.weights is not None if self.freeze_bn is None else self.freeze_bn
