"""torchvision's own ImageNet weights, by the word "torchvision": finds them in torch.hub's cache, or downloads them.

Reads no weights: ``foreign`` reads the file like any other.
"""

from __future__ import annotations

from dataclasses import replace
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from torch import hub
from torchvision.models import get_model_weights

from cgd_deploy.cli.terminal import errors
from cgd_deploy.errors import InputError, in_one_line
from cgd_deploy.files import sha256_file

from .backbone import family_of
from .config import TrainConfig
from .processes import Processes

TORCHVISION = Path("torchvision")
VERSION = "IMAGENET1K_V1"
"""Papers on retrieval before 2021 started from these weights. V2 is a newer recipe, and some networks lack it."""


def with_weights_file(config: TrainConfig, processes: Processes) -> TrainConfig:
    """``config`` with the path of a file in ``weights``, see ``weights_file``."""
    if config.weights is None:
        return config
    return replace(config, weights=weights_file(config.weights, config.backbone, processes))


def weights_file(weights: str | Path, backbone: str, processes: Processes | None = None) -> Path:
    """The file of torchvision's weights of ``backbone`` if ``weights`` is the word "torchvision", else ``weights``.

    torch.hub downloads the file into its cache once. Of several processes, the first one downloads. If there is a file
    named torchvision in the current folder, ``weights`` means that file; a folder of that name does not count.

    Raises SpecError for an unknown backbone. Raises InputError for a backbone of timm, for a failed download, and for a
    damaged file in the cache, see ``_check``.
    """
    path, processes = Path(weights), processes or Processes()
    if path != TORCHVISION or path.is_file():
        return path
    url = torchvision_url(backbone)
    path = Path(hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    if processes.first:
        _download(url, path)
    processes.collect(None)
    _download(url, path)  # for processes on machines with another cache
    _check(path)
    return path


def torchvision_url(backbone: str) -> str:
    """The address of torchvision's weights of ``backbone``: ``VERSION``, or the default if there is no such version.

    Raises SpecError for an unknown backbone, InputError for a backbone of another library.
    """
    if (library := family_of(backbone).library) != "torchvision":
        raise InputError(
            f"torchvision has no weights of {backbone}, which is a network of {library}; pass a file of weights in "
            "place of torchvision."
        )
    every = get_model_weights(backbone)
    return every.__members__.get(VERSION, every.DEFAULT).url


def _promised(path: Path) -> str:
    """The first digits of the SHA-256, which end the name of a file of torchvision: "resnet50-0676ba61.pth"."""
    return path.stem.rpartition("-")[2]


def _download(url: str, path: Path) -> None:
    """Download ``url`` to ``path`` unless the file is there; a file whose SHA-256 differs does not get its name."""
    if path.exists():
        return
    errors.print(f"Downloading torchvision's weights to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(path), _promised(path), progress=errors.is_terminal and not errors.quiet)
    except (OSError, HTTPException, RuntimeError) as error:  # torch.hub raises RuntimeError for another SHA-256
        raise InputError(
            f"{path.name} could not be downloaded ({in_one_line(error)}); download {url} elsewhere and pass its path: "
            "train --weights FILE, or import FILE."
        ) from error


def _check(path: Path) -> None:
    """Raise InputError unless the SHA-256 of a file starts as its name says. torch.hub checks only new files."""
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({in_one_line(error)}); make it readable, or delete it.") from error
    if not sha256.startswith(_promised(path)):
        raise InputError(
            f"{path} is damaged: its SHA-256 starts with {sha256[:8]} and not with {_promised(path)}; delete the file, "
            "and the next run downloads it again."
        )
