"""Training from end to end on tiny pictures: files, resuming, freezing and what is refused."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import CgdError, CheckpointError, InputError, SpecError
from cgd_deploy.hardware import cpu
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.pictures.preprocess import preprocess
from cgd_train import trainer
from cgd_train.checkpoint import load_checkpoint, save_checkpoint
from cgd_train.config import TrainConfig
from cgd_train.losses import RANKING_LOSSES
from cgd_train.measuring import embed_images
from cgd_train.model import CGD
from cgd_train.processes import Processes
from cgd_train.step import Stepper
from cgd_train.trainer import train


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Eight classes with six pictures each, a folder a class: blurred noise around a pattern of the class."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for label in range(8):
        (root / f"class{label}").mkdir()
        pattern = random.integers(60, 196, (4, 4, 3))
        for i in range(6):
            pixels = (pattern + random.integers(-60, 60, (4, 4, 3))).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 40), Image.Resampling.BILINEAR).save(root / f"class{label}/{i}.png")
    return root


def tiny(folder: Path, out: Path, **changes: object) -> TrainConfig:
    """A run of a second or two; one thread, because two of them wait for each other on a busy machine."""
    settings = {
        "data": folder,
        "backbone": "resnet18",
        "descriptors": "SG",
        "dim": 16,
        "size": 32,
        "no_downsample": "none",
        "epochs": 2,
        "lr": 1e-3,
        "auxiliary_lr": 1.0,
        "schedule": "step",
        "classes_per_batch": 4,
        "pictures_per_class": 3,
        "threads": 1,
        "out": out,
    }
    return TrainConfig(**{**settings, **changes})


def lines(out: Path) -> list[dict]:
    """metrics.jsonl without the times."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("seconds") >= line.pop("training_seconds") >= 0 for line in read)
    assert all(line.pop("training_cpu_seconds") >= 0 for line in read)
    return read


@pytest.fixture(scope="session")
def straight(folder, tmp_path_factory) -> Path:
    """The folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert train(tiny(folder, out, learn_p=True)) == out / "best.pt"
    return out


def test_a_run_leaves_its_three_files(folder, straight):
    assert sorted(p.name for p in straight.iterdir()) == ["best.pt", "last.pt", "metrics.jsonl"]
    training, testing = read_images(folder).split_classes()
    best, last = load_checkpoint(straight / "best.pt"), load_checkpoint(straight / "last.pt")
    assert best.trainer == {} and last.trainer["stepper"]["optimizer"]
    for checkpoint in (best, last):
        assert checkpoint.calibration == training
        assert checkpoint.evaluation == Evaluation(testing)
    assert last.spec.gem_p != 3.0  # it was learned


def test_metrics_start_untrained_and_the_loss_is_a_number(straight):
    metrics = lines(straight)
    assert [line["epoch"] for line in metrics] == [0, 1, 2]
    assert metrics[0]["loss"] is None and all(line["loss"] > 0 for line in metrics[1:])
    for line in metrics:
        recall = [line["recall"][k] for k in ("1", "2", "4", "8")]
        assert recall == sorted(recall) and recall[0] >= 0 and recall[-1] <= 1


@pytest.mark.parametrize("name", ["best", "last"])
def test_metrics_are_the_recall_of_the_saved_model(straight, name):
    """A file scores what metrics.jsonl says, counted by loops."""
    checkpoint = load_checkpoint(straight / f"{name}.pt")
    classes = checkpoint.evaluation.images.classes
    descriptors = embed_images(checkpoint.model, checkpoint.evaluation.images)
    correct = 0
    for q, query in enumerate(descriptors):
        others = [(math.dist(query, row), g) for g, row in enumerate(descriptors) if g != q]
        correct += classes[min(others)[1]] == classes[q]
    recalls = [line["recall"]["1"] for line in lines(straight)]
    assert correct / 24 == pytest.approx(max(recalls) if name == "best" else recalls[-1])


def test_embedded_images_are_preprocessed_and_in_list_order(folder):
    _, testing = read_images(folder).split_classes()
    model = CGD(tiny(folder, Path()).spec)
    descriptors = embed_images(model, testing, batch_size=5)
    assert descriptors.shape == (24, 16) and descriptors.dtype == np.float32
    mean, std = np.array(model.spec.mean), np.array(model.spec.std)
    pixels = np.stack([(preprocess(path, model.spec) / 255 - mean) / std for path in testing.paths])
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)))[0]
    assert np.allclose(descriptors, expected, atol=1e-5)


def test_a_resumed_run_ends_like_an_uninterrupted_one(folder, straight, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, epoch=1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(folder, tmp_path, learn_p=True))
    monkeypatch.undo()
    assert [line["epoch"] for line in lines(tmp_path)] == [0, 1]
    train(tiny(folder, tmp_path, learn_p=True, resume=True))

    resumed, expected = lines(tmp_path), lines(straight)
    assert [line["loss"] for line in resumed[1:]] == pytest.approx([line["loss"] for line in expected[1:]], rel=1e-4)
    assert [line["recall"] for line in resumed] == [line["recall"] for line in expected]
    resumed, expected = (load_checkpoint(out / "last.pt").model.state_dict() for out in (tmp_path, straight))
    for name, tensor in expected.items():
        assert torch.allclose(resumed[name], tensor, atol=1e-4), name


@pytest.mark.slow
def test_a_run_killed_in_an_epoch_and_resumed_ends_like_an_uninterrupted_one(folder, tmp_path):
    """As a user would: SIGKILL leaves no chance to clean up."""

    def command(out: Path, *more: object) -> list[str]:
        settings = ["--backbone", "resnet18", "--dim", 16, "--size", 32, "--epochs", 2, "--threads", 1]
        batches = ["--classes-per-batch", 4, "--pictures-per-class", 3]
        arguments = ["train", "--data", folder, "-o", out, *settings, *batches, *more]
        return [sys.executable, "-m", "cgd_deploy", *map(str, arguments)]

    killed = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) == 2):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and len(lines(tmp_path / "killed")) < 3
    for out, more in (("killed", ["--resume"]), ("straight", [])):
        subprocess.run(command(tmp_path / out, *more), check=True, capture_output=True)

    ours, expected = lines(tmp_path / "killed"), lines(tmp_path / "straight")
    assert [line["recall"] for line in ours] == [line["recall"] for line in expected]
    assert [line["loss"] for line in ours[1:]] == pytest.approx([line["loss"] for line in expected[1:]], rel=1e-4)


def test_it_stops_early_when_recall_no_longer_improves(folder, tmp_path, capsys, monkeypatch):
    recalls = iter([0.2, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9])
    measured = {"map_at_r": 0.0, "mean_cosine": 0.0}
    monkeypatch.setattr(trainer, "measure", lambda *_: {"recall": {"1": next(recalls)}, **measured})
    train(tiny(folder, tmp_path, epochs=6, patience=3))
    assert [line["recall"]["1"] for line in lines(tmp_path)] == [0.2, 0.5, 0.4, 0.5, 0.3]
    assert "no better recall@1 for 3 epochs: stopped" in capsys.readouterr().err
    train(tiny(folder, tmp_path, epochs=6, patience=3, resume=True))
    assert len(lines(tmp_path)) == 5


def test_a_gallery_of_its_own_is_searched(tmp_path):
    """In-shop: queries search the gallery, and the K are its authors'."""
    (tmp_path / "Img/img").mkdir(parents=True)
    random = np.random.default_rng(3)
    rows = []
    for item in range(4):
        for number in range(6):
            name = f"img/{item}-{number}.png"
            Image.fromarray(random.integers(0, 256, (34, 34, 3), dtype=np.uint8)).save(tmp_path / "Img" / name)
            status = "train" if item < 2 else ("query", "gallery")[number % 2]
            rows.append(f"{name}   id_{item}   {status}")
    text = "\n".join([str(len(rows)), "image_name item_id evaluation_status", *rows])
    (tmp_path / "list_eval_partition.txt").write_text(text)
    train(tiny(tmp_path, tmp_path / "run", epochs=0, classes_per_batch=2))
    assert list(lines(tmp_path / "run")[0]["recall"]) == ["1", "10", "20", "30", "40", "50"]
    evaluation = load_checkpoint(tmp_path / "run/best.pt").evaluation
    assert (len(evaluation.queries), len(evaluation.gallery)) == (6, 6)


def test_test_pictures_that_nobody_can_find_are_left_out_and_counted(folder, tmp_path, capsys, monkeypatch):
    training, testing = read_images(folder).split_classes()
    alone = replace(testing, classes=("x", "y", *testing.classes[2:]))
    train(tiny(folder, tmp_path / "run", epochs=0), training, alone)
    assert lines(tmp_path / "run")[0]["queries"] == {"asked": 24, "unanswerable": 2}
    assert "recall leaves out 2 of 24 queries: there is no picture of their class to find." in capsys.readouterr().err
    nobody = replace(testing, classes=tuple(testing.names))
    monkeypatch.setattr(trainer, "measure", lambda *_: pytest.fail("pictures were embedded"))
    with pytest.raises(InputError, match=r"none of the 24 queries .* has a picture of its class to find"):
        train(tiny(folder, tmp_path / "none"), training, nobody)


def interrupt_after(monkeypatch, epoch: int) -> None:
    original = trainer._train_epoch

    def train_epoch(config, *args):
        if args[-2] > epoch:
            raise KeyboardInterrupt
        return original(config, *args)

    monkeypatch.setattr(trainer, "_train_epoch", train_epoch)


def test_resuming_a_finished_run_changes_nothing(folder, straight):
    before = (straight / "last.pt").read_bytes()
    assert train(tiny(folder, straight, learn_p=True, resume=True)) == straight / "best.pt"
    assert (straight / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.1), ("descriptors", "GS"), ("epochs", 3), ("seed", 1), ("freeze_bn", True)]
)
def test_resuming_with_another_setting_names_it(folder, straight, field, value):
    with pytest.raises(InputError, match=f"was trained with {field}=.*resume with the same {field}"):
        train(replace(tiny(folder, straight, learn_p=True, resume=True), **{field: value}))


def test_resuming_with_other_pictures_is_refused(folder, straight):
    training, testing = read_images(folder).split_classes()
    with pytest.raises(InputError, match="was trained with data="):
        train(tiny(folder, straight, learn_p=True, resume=True), testing, training)


@pytest.fixture
def copied(folder, straight, tmp_path) -> TrainConfig:
    """The finished run and its pictures, both copied to other places; resuming it."""
    shutil.copytree(folder, tmp_path / "pictures", copy_function=shutil.copyfile)
    shutil.copytree(straight, tmp_path / "run")
    return tiny(tmp_path / "pictures", tmp_path / "run", learn_p=True, resume=True)


def test_a_copied_data_set_is_resumed_with(copied):
    """Its files have other times."""
    assert train(copied) == copied.out / "best.pt"


def test_resuming_with_changed_pictures_of_the_same_names_counts_them(copied):
    for name in ("class0/1.png", "class7/5.png"):
        Image.new("RGB", (40, 40)).save(copied.data / name)
    with pytest.raises(InputError, match=r"2 of 48 pictures have other sizes .*class0/1\.png for one; restore the"):
        train(copied)


def test_a_run_that_stored_no_sizes_is_resumed_with_a_note(copied, capsys):
    """Release 0.1.0 stored none."""
    last = load_checkpoint(copied.out / "last.pt")
    del last.trainer["sizes"]
    save_checkpoint(last, copied.out / "last.pt")
    train(copied)
    assert "last.pt holds no sizes of pictures" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten(folder, straight):
    before = (straight / "last.pt").read_bytes()
    with pytest.raises(
        InputError, match=r"already holds last\.pt; add --resume to continue that run, or choose another -o"
    ):
        train(tiny(folder, straight))
    assert (straight / "last.pt").read_bytes() == before


def test_resuming_needs_a_run(folder, tmp_path):
    with pytest.raises(InputError, match=r"there is no .*last\.pt to resume from"):
        train(tiny(folder, tmp_path, resume=True))


def test_training_learns_its_own_pictures(folder, tmp_path):
    training, _ = read_images(folder).split_classes()
    train(tiny(folder, tmp_path, epochs=5), training, training)
    metrics = lines(tmp_path)
    assert metrics[-1]["loss"] < 0.6 * metrics[1]["loss"]


def test_frozen_stages_and_batchnorm_stay_as_they_are(folder, tmp_path):
    """Starting from weights, with only layer4 trained and no auxiliary head."""
    torch.manual_seed(5)
    config = tiny(folder, tmp_path / "run", epochs=1, warm_up=0, train_from="layer4", auxiliary=False)
    weights = CGD(config.spec).backbone.state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    train(replace(config, weights=tmp_path / "weights.pth"))
    model = load_checkpoint(tmp_path / "run" / "last.pt").model
    assert model.auxiliary is None
    for name, tensor in model.backbone.state_dict().items():
        trained = name.startswith("layer4") and name.endswith(("weight", "bias"))
        assert torch.equal(tensor, weights[name]) != trained, name


def test_a_lone_best_model_is_replaced_by_none_but_itself(folder, tmp_path):
    config = tiny(folder, tmp_path / "run")
    train(config)
    (config.out / "last.pt").unlink()
    before = (config.out / "best.pt").read_bytes()
    for change in ({"seed": config.seed + 1}, {"descriptors": "GS"}):  # the second has the same weights
        with pytest.raises(InputError, match=r"already holds best\.pt and no last\.pt to resume from"):
            train(replace(config, **change))
    assert (config.out / "best.pt").read_bytes() == before


def test_frozen_stages_are_left_out_of_the_graph(folder, tmp_path):
    config = tiny(folder, tmp_path, train_from="layer3")
    model = CGD(config.spec)
    for stage in trainer._frozen_stages(model, "layer3"):
        stage.requires_grad_(False)
    parameters = Stepper(model, config, Processes()).parameters
    trainer._train_mode(model, config)
    assert not model.backbone[:-2](torch.zeros(2, 3, 32, 32)).requires_grad
    inner = [p for stage in ("layer3", "layer4") for p in getattr(model.backbone, stage).parameters()]
    assert [id(p) for p in parameters] == [id(p) for p in [*inner, *model.heads.parameters()]]
    assert model.backbone.layer4.training and not model.backbone.bn1.training


def test_batchnorm_is_frozen_exactly_when_weights_are_given_unless_told(folder, tmp_path):
    config = tiny(folder, tmp_path)
    assert not config.bn_is_frozen
    assert replace(config, weights=Path("w.pth")).bn_is_frozen
    assert replace(config, freeze_bn=True).bn_is_frozen
    assert not replace(config, weights=Path("w.pth"), freeze_bn=False).bn_is_frozen


def test_weights_are_left_alone_in_the_warm_up(folder, tmp_path):
    weights = CGD(tiny(folder, tmp_path).spec).backbone.state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    for epochs, same in ((1, True), (2, False)):
        config = tiny(folder, tmp_path / str(epochs), weights=tmp_path / "weights.pth", warm_up=1, epochs=epochs)
        train(config)
        model = load_checkpoint(config.out / "last.pt").model
        assert torch.equal(model.backbone.conv1.weight, weights["conv1.weight"]) == same


def test_training_takes_what_import_takes_and_says_what_it_left(folder, tmp_path, capsys):
    config = tiny(folder, tmp_path / "run", epochs=0, weights=tmp_path / "weights.ckpt")
    weights = CGD(config.spec).backbone.state_dict()
    wrapped = {f"model.module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": wrapped, "args": Namespace(lr=0.1)}, config.weights)
    train(config)
    model = load_checkpoint(config.out / "last.pt").model
    assert torch.equal(model.backbone.conv1.weight, weights["conv1.weight"])
    assert "also holds objects of argparse.Namespace" in capsys.readouterr().err
    torch.save({0: torch.zeros(3), "conv1.weight": torch.zeros(1)}, config.weights)
    with pytest.raises(CheckpointError, match="fits neither resnet18"):
        train(replace(config, out=tmp_path / "other"))


def test_every_epoch_has_its_own_batches(folder, tmp_path, monkeypatch):
    seen = []

    def train_epoch(stepper, made, targets, epoch, progress):
        seen.append(([batch.tolist() for batch in targets], next(iter(made)).tobytes()))
        return {"loss": 0.0}

    monkeypatch.setattr(trainer, "_train_epoch", train_epoch)
    train(tiny(folder, tmp_path, epochs=5, classes_per_batch=2))
    targets, pixels = zip(*seen, strict=True)
    assert len(set(map(str, targets))) == len(set(pixels)) == 5


def test_every_batch_has_its_own_learning_rate(folder, tmp_path, monkeypatch):
    rates, original = [], Stepper.step

    def step(stepper, *args):
        rates.append([group["lr"] for group in stepper.optimizer.param_groups])
        return original(stepper, *args)

    monkeypatch.setattr(Stepper, "step", step)
    rate = {"lr": 1.0, "head_lr": 0.3, "auxiliary_lr": 0.5, "schedule": "cosine"}
    train(tiny(folder, tmp_path, epochs=2, classes_per_batch=2, **rate))
    falling = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]  # 4 batches an epoch
    assert rates == [pytest.approx([rate, 0.3 * rate, 0.5 * rate]) for rate in falling]


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(RANKING_LOSSES, "batch-hard", lambda descriptors, _: descriptors.sum() * math.nan)
    with pytest.raises(CgdError, match="the loss became nan in epoch 1; start again with a learning rate below"):
        train(tiny(folder, tmp_path))
    assert len(lines(tmp_path)) == 1


def test_threads_are_set_only_when_given(folder, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    train(tiny(folder, tmp_path / "a", epochs=0, threads=None))
    assert calls == []
    train(tiny(folder, tmp_path / "b", epochs=0, threads=2))
    assert calls == [2]


def test_threads_are_no_more_than_a_quota_grants(folder, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: 1.5)
    train(tiny(folder, tmp_path, epochs=0, threads=None))
    assert calls == [1]


def test_the_callers_random_generator_is_left_alone(folder, tmp_path):
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    train(tiny(folder, tmp_path, epochs=0))
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"classes_per_batch": 5}, InputError, "have 4 classes, a batch needs 5"),
        (
            {"train_from": "layer5"},
            InputError,
            "train_from='layer5' is not a stage; expected",
        ),
        ({"weights": Path("missing.pth")}, CheckpointError, "there is no checkpoint at missing.pth"),
        ({"data": None}, InputError, "nothing to train on"),
        ({"device": "abacus"}, InputError, "device='abacus' is unknown"),
        ({"backbone": "vgg"}, SpecError, "backbone 'vgg' is unknown"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(folder, tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        train(tiny(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", -1), ("lr", 0.0), ("pictures_per_class", 1), ("smoothing", 1.0), ("temperature", 0.0), ("threads", 0)],
)
def test_an_impossible_setting_is_named(field, value):
    with pytest.raises(InputError, match=f"{field}={value!r} cannot be used; expected"):
        TrainConfig(**{field: value})


def test_lists_need_classes_and_come_in_pairs(folder, tmp_path):
    training, testing = read_images(folder).split_classes()
    with pytest.raises(InputError, match="both a training and a test list"):
        train(tiny(folder, tmp_path), training)
    with pytest.raises(InputError, match="the test list has 24 pictures"):
        train(tiny(folder, tmp_path), training, ImageList(testing.root, testing.names))
    with pytest.raises(InputError, match="the test list has 1 pictures"):
        train(tiny(folder, tmp_path), training, testing.subset([0]))


@pytest.fixture
def damaged(folder, tmp_path) -> Path:
    """The pictures, of which one to train on and two to test on are no pictures at all."""
    shutil.copytree(folder, tmp_path / "pictures")
    for name in ("class1/2.png", "class5/0.png", "class6/5.png"):
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    return tmp_path / "pictures"


def test_bad_pictures_are_left_out_of_a_run_and_told_once(damaged, tmp_path, capsys):
    """The run is the one that the good pictures alone would give."""
    train(tiny(damaged, tmp_path / "run"))
    told = capsys.readouterr().err
    assert told.count("left out: ") == 3 and "class1/2.png cannot be decoded" in told
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert len(last.calibration) == 23 and len(last.evaluation.images) == 22
    assert last.trainer["left_out"] == {"training": ["class1/2.png"], "testing": ["class5/0.png", "class6/5.png"]}
    for name in last.trainer["left_out"]["training"] + last.trainer["left_out"]["testing"]:
        (damaged / name).unlink()
    train(tiny(damaged, tmp_path / "other"))
    ours, expected = lines(tmp_path / "run"), lines(tmp_path / "other")
    assert [line["recall"] for line in ours] == [line["recall"] for line in expected]
    assert [line["loss"] for line in ours[1:]] == pytest.approx([line["loss"] for line in expected[1:]], rel=1e-4)


def test_a_strict_run_stops_before_it_writes_anything(damaged, tmp_path):
    with pytest.raises(InputError, match=r"class1/2\.png cannot be decoded"):
        train(tiny(damaged, tmp_path / "run", strict=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("then", ["still bad", "removed", "mended"])
def test_a_run_goes_on_without_its_bad_pictures(folder, damaged, tmp_path, monkeypatch, then):
    """The advice is to remove or to replace them; either way a resumed run sees the pictures that it saw before."""
    whole = tiny(damaged, tmp_path / "whole")
    train(whole)
    half = tiny(damaged, tmp_path / "half")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, epoch=1)
        train(half)
    for name in ("class1/2.png", "class5/0.png", "class6/5.png"):
        if then == "removed":
            (damaged / name).unlink()
        if then == "mended":
            shutil.copy(folder / name, damaged / name)
    train(replace(half, resume=True))
    ours, expected = lines(half.out), lines(whole.out)
    assert [line["recall"] for line in ours] == [line["recall"] for line in expected]
    assert [line["loss"] for line in ours[1:]] == pytest.approx([line["loss"] for line in expected[1:]], rel=1e-4)


def test_a_picture_that_went_bad_since_stops_a_resumed_run(copied):
    (copied.data / "class0/1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"class0/1\.png could be read when this run began, .*restore the"):
        train(copied)
