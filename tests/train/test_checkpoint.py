"""Checkpoints: what goes in comes out, and what does not fit is refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import CgdError, CheckpointError, SpecError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.spec import ModelSpec
from cgd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, space_id
from cgd_train.model import CGD

SPEC = ModelSpec(backbone="resnet18", descriptors="SG", dim=8, input_size=(32, 32))
LIST = ImageList(Path("pictures"), ("a/1.png", "b/2.png"), ("a", "b"), ((0, 0, 9, 9), (1, 2, 30, 40)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[CGD, Path]:
    torch.manual_seed(0)
    model = CGD(SPEC, classes=3, learn_p=True)
    torch.nn.init.constant_(model.pools[1].p, 2.5)
    trainer = {"metrics": [{"epoch": 0}]}
    evaluation = Evaluation(LIST.subset([1]), recall_at=(1, 10))
    made = Checkpoint(model, LIST, evaluation, trainer, {"layout": "elsewhere"})
    path = save_checkpoint(made, tmp_path_factory.mktemp("runs") / "c.pt")
    return model.eval(), path


def edited(saved: tuple[CGD, Path], tmp_path: Path, **changes: object) -> Path:
    data = torch.load(saved[1], weights_only=True)
    torch.save({**data, **changes}, tmp_path / "edited.pt")
    return tmp_path / "edited.pt"


def refused(path: Path, kind: type[CgdError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_round_trip(saved):
    model, path = saved
    loaded = load_checkpoint(path)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected, found = model(images), loaded.model(images)
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    assert not loaded.model.training
    assert loaded.spec == model.spec
    assert loaded.calibration == replace(LIST, root=LIST.root.absolute())
    testing = replace(LIST, root=LIST.root.absolute()).subset([1])
    assert loaded.evaluation == Evaluation(testing, recall_at=(1, 10))
    assert loaded.origin == {"layout": "elsewhere"}
    assert loaded.trainer == {"metrics": [{"epoch": 0}]}


def test_the_spec_gets_the_learned_p_and_the_space_id(saved):
    spec = load_checkpoint(saved[1]).spec
    assert spec.gem_p == 2.5
    assert len(spec.space_id) == 16 and int(spec.space_id, 16) >= 0


def test_space_id_follows_the_descriptor_and_nothing_else(saved):
    model, _ = saved
    state = dict(model.state_dict())
    original = space_id(model.spec, state)
    assert original == model.spec.space_id

    other_head = {**state, "auxiliary.1.weight": state["auxiliary.1.weight"] + 1}
    no_head = {name: tensor for name, tensor in state.items() if not name.startswith("auxiliary.")}
    assert space_id(model.spec, other_head) == space_id(model.spec, no_head) == original
    assert space_id(replace(model.spec, space_id="other"), state) == original

    for name in ("backbone.conv1.weight", "backbone.bn1.running_mean", "heads.1.weight"):
        assert space_id(model.spec, {**state, name: state[name] + 1e-3}) != original
    assert space_id(replace(model.spec, descriptors="GS"), state) != original
    assert space_id(replace(model.spec, mean=(0.5, 0.5, 0.5)), state) != original


def test_edited_weights_are_refused(saved, tmp_path):
    state = torch.load(saved[1], weights_only=True)["state_dict"]
    state["heads.0.weight"] = state["heads.0.weight"] * 2
    refused(edited(saved, tmp_path, state_dict=state), CheckpointError, "the file was edited")


def test_weights_of_another_spec_are_refused(saved, tmp_path):
    spec = torch.load(saved[1], weights_only=True)["spec"]
    refused(edited(saved, tmp_path, spec={**spec, "dim": 10}), CheckpointError, "do not fit its spec")
    refused(edited(saved, tmp_path, spec={**spec, "descriptors": "GS"}), CheckpointError, "do not fit its spec|edited")
    refused(edited(saved, tmp_path, spec={**spec, "sharpen": 1}), SpecError, "unknown fields 'sharpen'")


def test_files_that_are_no_checkpoint_are_refused(saved, tmp_path):
    refused(tmp_path / "missing.pt", CheckpointError, "there is no checkpoint at .*missing.pt")
    text = tmp_path / "notes.pt"
    text.write_text("not a checkpoint")
    refused(text, CheckpointError, "is not a file of weights; pass")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(saved[1].read_bytes()[:5000])
    refused(cut, CheckpointError, "is damaged or cut short; copy")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", CheckpointError, "holds a list; expected a table")
    torch.save({"state_dict": {}}, tmp_path / "bare.pt")
    refused(tmp_path / "bare.pt", CheckpointError, "has no model spec")
    refused(edited(saved, tmp_path, cgd_checkpoint=99), CheckpointError, "has schema 99, this release reads 2")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": 10**9}, "1000000000 classes, which its weights do not have"),
        ({"classes": "3"}, "'3' classes"),
        ({"state_dict": [1]}, "damaged checkpoint"),
        ({"calibration": {"names": ["a"]}}, "damaged checkpoint"),
        ({"evaluation": 3}, "damaged checkpoint"),
    ],
)
def test_a_checkpoint_of_other_types_is_refused(saved, tmp_path, changes, text):
    refused(edited(saved, tmp_path, **changes), CheckpointError, text)


def test_pickled_code_is_never_run(tmp_path):
    torch.save({"spec": Path("x")}, tmp_path / "code.pt")
    refused(tmp_path / "code.pt", CheckpointError, "for safety: it holds objects of pathlib")


def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def broken(file: Path, data: memoryview) -> None:
        with open(file, "wb") as opened:
            opened.write(data[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(Checkpoint(saved[0]), path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert path.read_bytes() == b"old"
