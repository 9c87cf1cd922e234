"""Options that describe the input of a model, parsed and as the commands take them."""

from __future__ import annotations

import json

import pytest

from cgd_deploy.cli.pixels import PixelOptions, input_of
from cgd_deploy.errors import InputError, SpecError
from cgd_deploy.spec import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize(
    ("options", "size", "resize"),
    [
        ({}, (224, 224), "pillow-bilinear"),
        ({"size": "160"}, (160, 160), "pillow-bilinear"),
        ({"size": "256x128"}, (256, 128), "pillow-bilinear"),
        ({"size": "96X64", "filter": "bicubic"}, (96, 64), "pillow-bicubic"),
        ({"resize": 256}, (224, 224), "pillow-bilinear-shorter-256"),
        ({"resize": 256, "crop": "224"}, (224, 224), "pillow-bilinear-shorter-256"),
        ({"resize": 256, "size": "192"}, (192, 192), "pillow-bilinear-shorter-256"),
        ({"resize": 300, "crop": "288x144", "filter": "lanczos"}, (288, 144), "pillow-lanczos-shorter-300"),
    ],
)
def test_options_name_the_input_and_the_rule(options, size, resize):
    found = input_of(PixelOptions(**options))
    assert (found.input_size, found.resize) == (size, resize)
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_mean_and_std_are_numbers_of_the_channels():
    found = input_of(PixelOptions(mean="0.5,.25, 0", std="1,0.5,0.00392"))
    assert (found.mean, found.std) == ((0.5, 0.25, 0.0), (1.0, 0.5, 0.00392))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"crop": "224"}, "--crop cuts pictures that --resize has resized; add --resize PIXELS"),
        ({"crop": "224", "size": "224"}, "--crop cuts"),
        ({"crop": "224", "size": "224", "resize": 256}, "--size and --crop both name the model's input"),
        ({"size": "small"}, "--size='small' is not a size; expected N or HEIGHTxWIDTH, such as 224 or 256x128"),
        ({"size": ""}, "--size='' is not a size"),
        ({"size": "224x"}, "--size='224x' is not a size"),
        ({"size": "1x2x3"}, "--size='1x2x3' is not a size"),
        ({"size": "-224"}, "--size='-224' is not a size"),
        ({"size": "9" * 100}, "is not a size"),
        ({"resize": 256, "crop": "22.4"}, "--crop='22.4' is not a size"),
        ({"mean": "0.5"}, "--mean='0.5' is not R,G,B; expected three numbers"),
        ({"mean": "1,2,3,4"}, "--mean='1,2,3,4' is not R,G,B"),
        ({"std": "a,b,c"}, "--std='a,b,c' is not R,G,B"),
        ({"mean": "123.675,116.28,103.53"}, "divide it by 255, and pass --mean 0.485,0.456,0.406"),
        ({"std": "58.395,57.12,57.375"}, "divide it by 255, and pass --std 0.229,0.224,0.225"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, says):
    with pytest.raises(InputError) as caught:
        input_of(PixelOptions(**options))
    assert says in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("options", "says"),
    [({"filter": "nearest"}, "filter='nearest' is unknown; this release knows bilinear"), ({"resize": 0}, "1 to 8192")],
)
def test_a_filter_or_side_that_is_unknown_is_refused(options, says):
    with pytest.raises(SpecError, match=says):
        input_of(PixelOptions(**options))


COMMANDS = {
    "train": ["--data", "pictures"],
    "import": ["weights.pth", "--backbone", "resnet18", "--descriptors", "S"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--crop", 224], "add --resize PIXELS"),
        (["--resize", 200], "input_size=(224, 224); the shorter side must be 224 pixels or more"),
        (["--size", "20x224"], "input_size=(20, 224) must be height and width from 32 to 4096 pixels"),
        (["--mean", "123.675,116.28,103.53"], "divide it by 255"),
        (["--std", "0.2,0,0.2"], "std=(0.2, 0.0, 0.2) must be three positive, finite numbers"),
        (["--mean", "0.2,nan,0.2"], "must be three finite numbers"),
        (["--filter", "cubic"], "filter='cubic' is unknown"),
    ],
)
def test_both_commands_refuse_it_before_they_read_anything(cli, command, options, says):
    code, out, err = cli(command, *COMMANDS[command], *options)
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_model_is_trained_resumed_and_run_on_its_own_pixels(cli, pictures, tmp_path, monkeypatch):
    """Not square, cropped, bicubic, with its own mean: from train to the report."""
    monkeypatch.chdir(tmp_path)
    small = ["--backbone", "resnet18", "--descriptors", "SG", "--dim", 16, "--classes-per-batch", 3]
    small += ["--pictures-per-class", 2, "-o", "run", "--threads", 2, "--no-downsample", "none"]
    pixels = ["--resize", 72, "--crop", "64x32", "--filter", "bicubic", "--mean", "0.5,0.4,0.3", "--std", "0.3,0.2,0.1"]
    code, out, err = cli("train", "--data", pictures, *small, *pixels, "--epochs", 1)
    assert (code, out) == (0, "run/best.pt\n"), err
    code, out, err = cli("train", "--data", pictures, *small, *pixels, "--epochs", 2, "--resume")
    assert code == 2 and "epochs=1" in err
    code, out, err = cli("train", "--data", pictures, *small, "--size", "64x32", "--epochs", 1, "--resume")
    assert code == 2 and "resize='pillow-bicubic-shorter-72', now it is 'pillow-bilinear'" in err

    for command in (["export", "run/best.pt"], ["build-engine", "--int8", "--backend", "onnxruntime"]):
        code, _, err = cli(*command)
        assert code == 0, err
    spec = json.loads(cli("inspect", "artifacts/model-int8.cgd", "--json")[1])["spec"]
    assert (spec["input_size"], spec["resize"]) == ([64, 32], "pillow-bicubic-shorter-72")
    assert (spec["mean"], spec["std"]) == ([0.5, 0.4, 0.3], [0.3, 0.2, 0.1])
    code, out, err = cli(
        "bench", "artifacts/model-int8.cgd", "--seconds", 0, "--json", "bench.json", "--html", "r.html"
    )
    assert code in (0, 3), err
    words = "64x32, shorter side to 72 by bicubic, centre crop"
    assert json.loads((tmp_path / "bench.json").read_text())["environment"]["input"] == words
    assert words in (tmp_path / "r.html").read_text()
