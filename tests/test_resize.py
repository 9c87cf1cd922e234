"""Resize rules: their text, the pixels they give against torchvision's, and what is refused."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, FAKE_SPEC, draw, write_fake_engine
from PIL import Image

from cgd_deploy import load
from cgd_deploy.errors import InputError, SpecError
from cgd_deploy.limits import set_limits
from cgd_deploy.pictures.preprocess import decode, preprocess
from cgd_deploy.resize import FILTERS, ResizeRule
from cgd_deploy.spec import ModelSpec

SIZES = [(300, 400), (401, 299), (257, 256), (256, 256), (224, 224), (90, 131), (131, 90), (77, 501), (640, 33)]
"""Height and width: landscape, portrait, square, odd, narrow, smaller and larger than what they are resized to."""


def spec_of(resize: str, *input_size: int) -> ModelSpec:
    return ModelSpec(backbone="resnet18", descriptors="S", dim=8, input_size=input_size, resize=resize)


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colour and noise, as a photo has: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width] / 40.0
    waves = np.stack([np.sin(2 * x + y), np.sin(x - 3 * y), np.sin(5 * x)], axis=2)
    noise = np.random.default_rng((height, width)).normal(0, 9, (height, width, 3))
    return (128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)


def torchvisions(pixels: np.ndarray, rule: ResizeRule, input_size: tuple[int, int]) -> np.ndarray:
    transforms = pytest.importorskip("torchvision.transforms")
    filter = transforms.InterpolationMode(rule.filter)
    resize = transforms.Resize(rule.shorter or input_size, interpolation=filter)
    whole = resize(Image.fromarray(pixels))
    return np.asarray(transforms.CenterCrop(input_size)(whole) if rule.shorter else whole)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(
    ("shorter", "input_size"), [(256, (224, 224)), (235, (224, 224)), (96, (96, 64)), (97, (48, 96)), (None, (96, 64))]
)
def test_pixels_are_torchvisions_to_the_bit(size, filter, shorter, input_size):
    rule = ResizeRule(filter, shorter)
    pixels = picture(*size)
    found = preprocess(Image.fromarray(pixels), spec_of(str(rule), *input_size))
    assert found.shape == (*input_size, 3) and found.dtype == np.uint8
    assert np.array_equal(found, torchvisions(pixels, rule, input_size))


def test_half_pixels_are_rounded_to_the_even_place():
    """The crop of 64 out of 67 starts at 1.5, that of 64 out of 69 at 2.5: both at 2."""
    pixels = picture(67, 69)
    found = preprocess(Image.fromarray(pixels), spec_of("pillow-bilinear-shorter-67", 64, 64))
    assert np.array_equal(found, pixels[2:66, 2:66])


@pytest.mark.parametrize(("size", "cut"), [((48, 64), np.s_[:, 8:56]), ((64, 48), np.s_[8:56, :])])
def test_the_centre_is_cut_out_of_the_longer_side(size, cut):
    pixels = picture(*size)
    found = preprocess(Image.fromarray(pixels), spec_of("pillow-bicubic-shorter-48", 48, 48))
    assert np.array_equal(found, pixels[cut])


def test_a_box_is_cut_first():
    pixels, box = picture(200, 300), (20, 30, 250, 170)
    spec = spec_of("pillow-bicubic-shorter-72", 64, 64)
    assert np.array_equal(preprocess(pixels, spec, box), preprocess(Image.fromarray(pixels[30:170, 20:250]), spec))


def test_a_box_is_cut_out_of_an_array_of_the_input_size_too():
    pixels, spec = picture(64, 64), spec_of("pillow-bilinear", 64, 64)
    cut = preprocess(Image.fromarray(pixels[10:40, 5:50]), spec)
    assert np.array_equal(preprocess(pixels, spec, (5, 10, 50, 40)), cut)


RULES = [
    ResizeRule(),
    ResizeRule("bicubic"),
    ResizeRule("bilinear", 256),
    ResizeRule("lanczos", 7),
    ResizeRule("box", 8192),
]


@pytest.mark.parametrize("rule", RULES)
def test_the_text_of_a_rule_is_read_as_the_same_rule(rule):
    assert ResizeRule.parse(str(rule)) == rule


def test_the_texts_are_as_documented():
    assert [str(rule) for rule in RULES] == [
        "pillow-bilinear",
        "pillow-bicubic",
        "pillow-bilinear-shorter-256",
        "pillow-lanczos-shorter-7",
        "pillow-box-shorter-8192",
    ]
    assert [rule.words for rule in RULES[1:3]] == [
        "stretched by bicubic",
        "shorter side to 256 by bilinear, centre crop",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pillow",
        "pillow-nearest",
        "pillow-Bilinear",
        "opencv-bilinear",
        "pillow-bilinear-shorter",
        "pillow-bilinear-shorter-",
        "pillow-bilinear-shorter-0256",  # one text a rule, as the space_id depends on it
        "pillow-bilinear-shorter-+256",
        "pillow-bilinear-shorter-²56",
        "pillow-bilinear-shorter-256 ",
        "pillow-bilinear-shorter-256\n",
        "pillow-bilinear-longer-256",
        "pillow-bilinear-shorter-" + "9" * 5000,
        None,
        256,
    ],
)
def test_other_texts_are_refused_in_one_sentence(text):
    with pytest.raises(SpecError, match=r"^resize=.* is unknown; this release knows pillow-FILTER and .*\.$"):
        spec_of(text, 224, 224)


@pytest.mark.parametrize("shorter", [223, 8, 1])
def test_a_resize_below_the_input_is_refused(shorter):
    with pytest.raises(SpecError, match=rf"shorter-{shorter}'.* the shorter side must be 224 pixels or more\.$"):
        spec_of(f"pillow-bilinear-shorter-{shorter}", 128, 224)
    assert spec_of("pillow-bilinear-shorter-224", 128, 224).rule.shorter == 224


@pytest.mark.parametrize("shorter", [0, -5, 8193])
def test_a_side_that_nobody_resizes_to_is_refused(shorter):
    with pytest.raises(SpecError, match=rf"shorter-{shorter}' must be 1 to 8192 pixels"):
        ResizeRule("bilinear", shorter)


def test_a_picture_so_narrow_that_it_would_fill_the_memory_is_refused():
    """Resized to a shorter side of 256, these 8x200,000 pixels would be 256x6,400,000."""
    strip = Image.new("RGB", (200_000, 8))
    with pytest.raises(InputError, match=r"^the picture, resized to 6400000x256, has 1,638,400,000 pixels and"):
        preprocess(strip, spec_of("pillow-bilinear-shorter-256", 224, 224))
    assert preprocess(strip, spec_of("pillow-bilinear", 224, 224)).shape == (224, 224, 3)
    set_limits(pixels=1_600_000)
    assert preprocess(strip.crop((0, 0, 1500, 8)), spec_of("pillow-box-shorter-64", 64, 64)).shape == (64, 64, 3)


def test_the_default_is_that_of_earlier_releases_and_so_is_every_space_id():
    text = ModelSpec(backbone="resnet50", descriptors="SG").to_json()
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "72d097ecf6484e9f"
    assert ModelSpec(backbone="resnet50", descriptors="SG").resize == "pillow-bilinear"


def test_a_rule_is_told_where_it_is_unusual():
    usual, other = spec_of("pillow-bilinear", 96, 64), spec_of("pillow-bicubic-shorter-128", 96, 64)
    assert usual.summary == "S 8 values, 96x64"
    assert other.summary == "S 8 values, 96x64, shorter side to 128 by bicubic, centre crop"
    assert usual.input_text == "96x64, stretched by bilinear"


CROPPED = replace(FAKE_SPEC, resize="pillow-bicubic-shorter-40")  # of 32x32


@pytest.fixture
def cropping(tmp_path: Path) -> Path:
    return write_fake_engine(tmp_path / "cropping.cgd", CROPPED)


def test_a_file_of_the_input_size_is_resized_like_any_other_and_an_array_is_ready(cropping):
    pixels = picture(32, 32)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    resized = np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC))[4:36, 4:36]
    assert not np.array_equal(resized, pixels)
    with load(cropping) as engine:
        as_it_is, as_a_file = engine.embed(pixels[None])[0], engine.embed(resized[None])[0]
        for image, expected in ((pixels, as_it_is), (file.getvalue(), as_a_file), (Image.fromarray(pixels), as_a_file)):
            assert np.array_equal(engine.embed([image])[0], expected)
            assert np.array_equal(engine.submit(image).result(), expected)


def test_every_way_into_an_engine_follows_the_rule(cropping, picture_list):
    expected = np.stack([preprocess(path, CROPPED) for path in picture_list.paths])
    assert not np.array_equal(expected, np.stack([preprocess(path, FAKE_SPEC) for path in picture_list.paths]))
    with load(cropping) as engine:
        listed = np.concatenate([descriptors for _, descriptors in engine.embed_list(picture_list)])
        assert np.array_equal(listed, engine.embed(expected))
        assert np.array_equal(engine.embed(picture_list.paths), engine.embed(expected))


@pytest.mark.parametrize(("size", "decoded"), [((1100, 901), (550, 451)), ((511, 700), (511, 700))])
def test_a_fast_decode_leaves_twice_the_shorter_side(size, decoded):
    file = io.BytesIO()
    Image.fromarray(picture(*size[::-1])).save(file, "JPEG", quality=90)
    assert decode(file.getvalue(), least=2 * 128).size == decoded
    spec = spec_of("pillow-bilinear-shorter-128", 96, 96)
    plain, fast = (preprocess(file.getvalue(), spec, fast_decode=fast).astype(int) for fast in (False, True))
    assert np.abs(plain - fast).mean() < 1.5
    assert np.array_equal(plain, fast) == (decoded == size)


def weights_of_torchvision(path: Path) -> object:
    """A random ResNet-18 of torchvision in eval mode, saved as ``path``; its BatchNorm has seen some pictures."""
    import torch
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = resnet18(weights=None)
        pixels = np.stack([preprocess(draw(kind, 0), spec_of("pillow-bilinear", 96, 96)) for kind in range(CLASSES)])
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 128 - 1)
    torch.save(model.state_dict(), path)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_an_imported_model_describes_as_with_torchvisions_own_transforms(cli, tmp_path, monkeypatch, filter):
    """Resize(256), CenterCrop(224), ToTensor and Normalize in torchvision, against weights -> import -> engine."""
    import torch
    from torchvision import transforms

    from cgd_train.checkpoint import load_checkpoint

    monkeypatch.chdir(tmp_path)
    trunk = weights_of_torchvision(tmp_path / "weights.pth")
    trunk.fc = torch.nn.Identity()
    mean, std = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)
    stated = ["--backbone", "resnet18", "--descriptors", "S", "--dim", 64, "--no-downsample", "none"]
    pixels = ["--resize", 256, "--crop", 224, "--filter", filter, "--mean", "0.5,0.4,0.3", "--std", "0.3,0.25,0.2"]
    assert cli("import", "weights.pth", *stated, *pixels)[0] == 0
    for command in (["export", "ckpt.pt"], ["build-engine", "--fp32", "--backend", "onnxruntime"]):
        code, _, err = cli(*command)
        assert code == 0, err

    pictures = [draw(kind, 1).resize(SIZES[kind][::-1]) for kind in range(CLASSES)]
    resize = transforms.Resize(256, interpolation=transforms.InterpolationMode(filter))
    crop = transforms.CenterCrop(224)
    normalize = transforms.Compose([resize, crop, transforms.ToTensor(), transforms.Normalize(mean, std)])
    [head] = load_checkpoint("ckpt.pt").model.heads
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(head(trunk(torch.stack([normalize(p) for p in pictures])))).numpy()
    with load("artifacts/model-fp32.cgd") as engine:
        for image in pictures:
            assert np.array_equal(preprocess(image, engine.spec), np.asarray(crop(resize(image))))
        found = engine.embed(pictures)
        stretch = replace(engine.spec, resize="pillow-bilinear")
        stretched = engine.embed(np.stack([preprocess(image, stretch) for image in pictures]))
    assert (1 - (found * expected).sum(1)).max() < 1e-5
    assert (1 - (stretched * expected).sum(1)).max() > 1e-3  # the pictures can tell the rules apart
