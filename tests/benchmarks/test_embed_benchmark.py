"""benchmarks/embed.py on an engine without a model: what it writes, and in which setting it measured."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import embed
from cgd_deploy.pictures.images import read_images

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "embed.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["embed.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_files_of_each_size_are_compared_with_pixels_in_memory(monkeypatch, fake_engine, pictures, tmp_path, capsys):
    out = tmp_path / "embed.json"
    sizes = ["--megapixels", 0.01, 0.5]
    arguments = ["--seconds", 0, "--pictures", 3, "--batch", 2, "--threads", 1, *sizes]
    run(monkeypatch, fake_engine, pictures, "-o", out, *arguments)
    result = json.loads(out.read_text())
    assert result["setting"] == {"threads": 1, "streams": 1, "batch": 2}
    assert result["environment"]["pictures"] == 3
    warned = "this machine was busy" in capsys.readouterr().err
    assert warned == (result["environment"]["load"]["busy"] is not False)
    small, small_fast, large, large_fast = result["files"]
    assert [one["megapixels"] for one in result["files"]] == [0.01, 0.01, 0.5, 0.5]
    assert [one["fast_decode"] for one in result["files"]] == [False, True, False, True]
    assert small["bytes"] == small_fast["bytes"] < large["bytes"] == large_fast["bytes"]
    for one in result["files"]:
        ratio = one["images_per_second"] / result["images_per_second"]
        assert one["files_over_memory"] == pytest.approx(ratio, rel=1e-2, abs=1e-4)
    assert large["images_per_second"] < small["images_per_second"] < result["images_per_second"]


def test_jpeg_files_keep_the_aspect_ratio(tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "wide.png")
    made = embed.jpeg_files(read_images(tmp_path / "wide.png"), 0.12, tmp_path / "made")
    with Image.open(made.path(0)) as image:
        assert (image.format, image.size) == ("JPEG", (600, 200))


@pytest.mark.parametrize(
    "wrong", [["--megapixels", 1, 1], ["--megapixels", 0], ["--megapixels", "nan"], ["--pictures", 0]]
)
def test_refuses_settings_that_make_no_sense(monkeypatch, fake_engine, pictures, capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, fake_engine, pictures, *wrong)
    assert ended.value.code == 2 and f"error: {wrong[0]} takes" in capsys.readouterr().err


def test_an_engine_that_is_none_is_told(monkeypatch, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path / "no.cgd", pictures)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("there is no engine")
