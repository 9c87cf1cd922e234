"""Weights by the word torchvision: from torch.hub's cache or a download, never a damaged file. Needs no network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from torch import hub
from torchvision.models import resnet18

from cgd_deploy.errors import InputError, SpecError
from cgd_deploy.files import sha256_file
from cgd_train import pretrained, trainer
from cgd_train.backbone import BACKBONES
from cgd_train.checkpoint import load_checkpoint
from cgd_train.config import TrainConfig
from cgd_train.foreign import import_weights
from cgd_train.pretrained import torchvision_url, weights_file, with_weights_file
from cgd_train.processes import Processes

WORD = "torchvision"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """torch.hub's cache, empty; the current folder is empty too, and torch.hub may open no address of a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    opened = hub.urlopen

    def urlopen(request):
        assert request.full_url.startswith("file:"), request.full_url
        return opened(request)

    monkeypatch.setattr(hub, "urlopen", urlopen)
    return tmp_path / "cache" / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A file that stands for torchvision's weights of a ResNet-18; its name tells its SHA-256."""
    torch.manual_seed(3)
    (tmp_path / "far").mkdir()
    torch.save(resnet18().state_dict(), tmp_path / "far" / "weights")
    digest = sha256_file(tmp_path / "far" / "weights")
    path = (tmp_path / "far" / "weights").rename(tmp_path / "far" / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setattr(pretrained, "torchvision_url", lambda backbone: path.as_uri())
    return path


def failing(error: Exception) -> Callable[..., None]:
    def urlopen(request: object) -> None:
        raise error

    return urlopen


def refused(says: str, backbone: str = "resnet18") -> str:
    with pytest.raises(InputError, match=says) as caught:
        weights_file(WORD, backbone)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("name", [name for name, family in BACKBONES.items() if family.library == "torchvision"])
def test_every_backbone_of_torchvision_has_weights_whose_name_tells_their_checksum(name):
    assert re.search(rf"/{name}\w*-[0-9a-f]{{8}}\.pth$", torchvision_url(name))


def test_the_weights_are_version_1_or_the_default(monkeypatch):
    assert torchvision_url("resnet50").endswith("/resnet50-0676ba61.pth")  # V2, the default, is resnet50-11ad3fa6.pth
    monkeypatch.setattr(pretrained, "VERSION", "IMAGENET1K_V0")
    assert torchvision_url("resnet50").endswith("/resnet50-11ad3fa6.pth")


def test_a_backbone_of_timm_is_refused():
    refused(
        "torchvision has no weights of seresnet50, which is a network of timm; pass a file of weights", "seresnet50"
    )
    with pytest.raises(SpecError, match="backbone 'resnet19' is unknown; the closest known ones are"):
        weights_file(WORD, "resnet19")


def test_the_file_is_downloaded_once(published, cache, capsys):
    path = weights_file(WORD, "resnet18")
    assert path == cache / published.name and path.read_bytes() == published.read_bytes()
    written = capsys.readouterr()
    assert written.out == "" and "Downloading torchvision's weights to " in written.err
    published.unlink()
    assert weights_file(Path(WORD), "resnet18") == path
    assert capsys.readouterr() == ("", "")
    assert list(cache.iterdir()) == [path]


def test_a_file_of_that_name_wins_and_a_folder_does_not(published, cache, tmp_path):
    assert weights_file("other.pth", "resnet18") == Path("other.pth")
    (tmp_path / WORD).mkdir()
    assert weights_file(WORD, "resnet18") == cache / published.name
    (tmp_path / WORD).rmdir()
    (tmp_path / WORD).touch()
    assert weights_file(WORD, "resnet18") == Path(WORD)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError("no route"), "<urlopen error no route>"),
        (HTTPError("", 403, "Forbidden", None, None), "HTTP Error 403: Forbidden"),
        (TimeoutError("timed out"), "timed out"),
        (IncompleteRead(b""), r"IncompleteRead\(0 bytes read\)"),
    ],
)
def test_a_failed_download_says_how_to_go_on(cache, monkeypatch, error, reason):
    monkeypatch.setattr(hub, "urlopen", failing(error))
    message = refused(
        rf"^resnet18-\w+\.pth could not be downloaded \({reason}\); download .* elsewhere and pass its path"
    )
    assert torchvision_url("resnet18") in message and "train --weights FILE" in message
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"<html>log in</html>", None])
def test_a_damaged_download_is_refused_and_not_kept(published, cache, content):
    whole = published.read_bytes()
    published.write_bytes(whole[: len(whole) // 2] if content is None else content)
    refused(r"could not be downloaded \(invalid hash value")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"half"])
def test_a_damaged_file_in_the_cache_is_refused(published, cache, content):
    path = weights_file(WORD, "resnet18")
    path.write_bytes(content)
    refused(r"-\w{8}\.pth is damaged: its SHA-256 starts with \w{8} and not with \w{8}; delete the file")
    path.unlink()
    path.mkdir()
    refused(r"cannot be read \(.*\); make it readable, or delete it")


def test_a_cache_that_cannot_be_written_is_named(published, cache, tmp_path):
    (tmp_path / "cache").touch()
    refused("could not be downloaded .*cache/hub")


def test_of_several_processes_the_first_one_downloads(published, cache, monkeypatch):
    """A process of another rank waits, and finds the file in a shared cache, or downloads to a cache of its own."""
    told = []
    monkeypatch.setattr(Processes, "collect", lambda self, thing: told.append([*cache.glob("*")]) or [thing])
    for rank in (1, 0):
        path = weights_file(WORD, "resnet18", Processes(rank, 2))
        assert path == cache / published.name
        path.unlink()
    assert told == [[], [cache / published.name]]


def test_a_run_starts_from_the_weights_and_resumes(published, cache, pictures, tmp_path):
    model = {"backbone": "resnet18", "weights": WORD, "dim": 8, "size": 32}
    batch = {"classes_per_batch": 2, "pictures_per_class": 2, "epochs": 1, "threads": 1}
    config = TrainConfig(data=pictures, out=tmp_path / "run", **model, **batch)
    assert with_weights_file(config, Processes()).weights == cache / published.name and config.bn_is_frozen
    assert with_weights_file(TrainConfig(), Processes()).weights is None
    trainer.train(config)
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert last.trainer["settings"]["weights"] == sha256_file(published)[:12]
    weights = torch.load(published, weights_only=True)
    assert torch.equal(last.model.backbone.conv1.weight, weights["conv1.weight"])
    for again in (WORD, published):
        trainer.train(replace(config, weights=again, resume=True))
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="was trained with weights="):
        trainer.train(replace(config, weights=tmp_path / "other.pth", resume=True))


def test_import_takes_the_word_too(published, cache):
    spec = TrainConfig(backbone="resnet18", dim=8, size=32).spec
    imported = import_weights(WORD, spec)
    assert imported.layout == "backbone" and imported.checkpoint.origin["imported_from"] == published.name
    assert imported.checkpoint.origin["sha256"] == sha256_file(published)
