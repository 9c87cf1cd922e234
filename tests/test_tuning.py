"""Autotuning: which settings are tried, which is taken, and that an engine remembers it for this machine only."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine
from PIL import Image

from cgd_deploy import tuning
from cgd_deploy.autotune import autotune
from cgd_deploy.backends.fake import FakeBackend
from cgd_deploy.backends.parallel import Parallel
from cgd_deploy.engine import Engine, load
from cgd_deploy.enginefile import read_engine
from cgd_deploy.errors import InputError
from cgd_deploy.golden import golden_images
from cgd_deploy.retrieval import cosines
from cgd_deploy.tuning import Setting, candidates, choice, setting_here, this_machine


def test_every_thread_or_half_of_them_is_tried_in_streams_that_divide_them():
    found = candidates(6, [1, 8])
    assert {(setting.threads, setting.streams) for setting in found} == {(6, 1), (6, 2), (3, 1)}
    assert candidates(1, [1, 4]) == [Setting(1, 1, 1), Setting(1, 1, 4)]
    assert all(setting.batch >= setting.streams for setting in candidates(8, [1, 2, 4]))


def test_the_smallest_batch_within_noise_of_the_fastest_is_taken():
    speeds = {
        Setting(2, 1, 1): 60.0,
        Setting(1, 1, 1): 40.0,
        Setting(2, 1, 8): 79.0,
        Setting(2, 2, 8): 78.0,
        Setting(2, 2, 32): 80.0,
        Setting(2, 1, 4): 70.0,
    }
    made = choice(speeds)
    assert made["latency"] == {"threads": 2, "streams": 1, "batch": 1}
    assert made["throughput"] == {"threads": 2, "streams": 1, "batch": 8}
    assert len(made["measured"]) == len(speeds)
    speeds[Setting(2, 2, 32)] = 90.0
    assert choice(speeds)["throughput"]["batch"] == 32


@pytest.fixture
def tuned(fake_engine, monkeypatch):
    monkeypatch.setattr("cgd_deploy.autotune.available_threads", lambda: 2)
    return fake_engine, autotune(fake_engine, seconds=0).tuning


def test_the_engine_remembers_what_was_measured_and_stays_whole(tuned):
    path, found = tuned
    manifest = read_engine(path).manifest
    assert manifest.tuning == found
    batches = {setting["batch"] for setting in found["measured"]}
    assert batches == {1, 2, 4, 8}  # the profile of the engine ends at 8
    assert setting_here(manifest, "throughput") == Setting(**found["throughput"])
    with load(path) as engine:
        assert engine.self_test() > 0.9999


def test_another_machine_does_not_follow_it(tuned, monkeypatch):
    path, _ = tuned
    monkeypatch.setattr(tuning, "cpu_name", lambda: "another")
    assert setting_here(read_engine(path).manifest, "latency") is None


@pytest.fixture
def asked(monkeypatch):
    """What every backend made from now on is asked for."""
    seen = []
    made = FakeBackend.__init__

    def init(self, payload, **options):
        seen.append(options)
        made(self, payload, **options)

    monkeypatch.setattr(FakeBackend, "__init__", init)
    return seen


@pytest.fixture
def told(tmp_path):
    """An engine that was tuned on this machine."""
    fastest = {"threads": 3, "streams": 1, "batch": 1}
    tuning_ = {"machine": this_machine(), "latency": fastest, "throughput": {"threads": 4, "streams": 2, "batch": 5}}
    return write_fake_engine(tmp_path / "tuned.cgd", tuning=tuning_)


def test_load_takes_the_threads_that_answer_one_picture_soonest(told, asked):
    load(told).close()
    load(told, threads=1).close()
    assert [(options["threads"], options["streams"]) for options in asked] == [(3, 1), (1, 1)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], (4, 2, 5)), (["--threads", "2"], (2, 1, 5)), (["--streams", "3", "--batch", "6"], (3, 3, 6))],
)
def test_embed_takes_what_describes_many_pictures_soonest(told, asked, cli, pictures, monkeypatch, options, expected):
    sizes = []
    embed_list = Engine.embed_list
    monkeypatch.setattr(
        Engine, "embed_list", lambda self, images, size, *more: sizes.append(size) or embed_list(self, images, 2)
    )
    code, _, _ = cli("embed", pictures, "-e", told, "-o", told.with_name("index.npy"), *options)
    assert code == 0
    assert (asked[-1]["threads"], asked[-1]["streams"], sizes[0]) == expected


def test_embed_can_decode_large_files_smaller(fake_engine, cli, tmp_path):
    (tmp_path / "large").mkdir()
    waves = np.sin(np.mgrid[0:300, 0:300].sum(axis=0) / 9)[..., None] * [90, 60, 30] + 128
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "large" / "a.jpg")
    found = []
    for name, options in (("plain", []), ("fast", ["--fast-decode"])):
        assert cli("embed", tmp_path / "large", "-e", fake_engine, "-o", tmp_path / f"{name}.npy", *options)[0] == 0
        found.append(np.load(tmp_path / f"{name}.npy"))
    assert not np.array_equal(*found) and cosines(*found).min() > 0.99


def test_gpu_engines_are_refused(tmp_path):
    path = write_fake_engine(tmp_path / "gpu.cgd", backend="tensorrt")
    with pytest.raises(InputError, match="tensorrt runs on a GPU"):
        autotune(path)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_batch_in_parts_is_the_batch(count):
    whole = FakeBackend(b'{"dim": 24}')
    pixels = golden_images(FAKE_SPEC, 7)[:count]
    with Parallel(FakeBackend(b'{"dim": 24}'), 3) as parts:
        assert np.allclose(parts.run(pixels), whole.run(pixels), atol=1e-6)


def test_the_parts_of_a_batch_run_at_the_same_time():
    meet = threading.Barrier(2, timeout=10)

    class Meeting(FakeBackend):
        def run(self, images):
            meet.wait()
            return super().run(images)

    with Parallel(Meeting(b'{"dim": 24}'), 2) as parts:
        assert len(parts.run(golden_images(FAKE_SPEC, 2))) == 2


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_streams_change_no_descriptor(engines, backend, pixels):
    with load(engines[backend, "int8"], threads=2) as one, load(engines[backend, "int8"], threads=2, streams=2) as two:
        assert cosines(one.embed(pixels[:7]), two.embed(pixels[:7])).min() > 0.99999


def test_more_streams_than_threads_are_refused(fake_engine):
    with pytest.raises(InputError, match="streams=4 cannot share threads=2"):
        load(fake_engine, threads=2, streams=4)


def test_build_engine_tunes_what_it_built(cli, model_onnx, tmp_path, monkeypatch):
    monkeypatch.setattr("cgd_deploy.autotune.SECONDS", 0.0)
    monkeypatch.setattr("cgd_deploy.autotune.BATCHES", (1, 2))
    monkeypatch.setattr("cgd_deploy.autotune.available_threads", lambda: 2)
    load = {"busy": True, "cores": 2, "others": 1.25, "steal": 0.0}
    monkeypatch.setattr("cgd_deploy.autotune.load_between", lambda *_: load)
    code, out, _ = cli("build-engine", model_onnx, "--fp32", "-o", tmp_path / "e.cgd", "--autotune")
    assert code == 0
    assert "warning: this machine was busy: other processes took 1.25 of 2 cores" in out
    assert read_engine(tmp_path / "e.cgd").manifest.tuning["load"] == load
    assert re.search(r"best throughput here: \d threads?, \d streams?, batch \d, [\d.]+ images/s", out)
    assert setting_here(read_engine(tmp_path / "e.cgd").manifest, "latency").batch == 1


def test_autotuning_a_gpu_engine_is_refused_before_it_is_built(cli, model_onnx, tmp_path):
    out = tmp_path / "e.cgd"
    code, _, err = cli("build-engine", model_onnx, "--fp16", "-o", out, "--backend", "tensorrt-rtx", "--autotune")
    assert code == 2 and "leave --autotune out" in err and not out.exists()


@pytest.mark.parametrize(("found", "warned"), [(["avx2"], True), (["avx2", "avx_vnni"], False)])
def test_a_cpu_that_is_slow_in_int8_is_told_of(cli, model_onnx, tmp_path, monkeypatch, found, warned):
    monkeypatch.setattr("cgd_deploy.hardware.instruction_sets", lambda: found)
    code, _, err = cli("build-engine", model_onnx, "--int8", "-o", tmp_path / "e.cgd", "--backend", "onnxruntime")
    assert code == 0 and ("this CPU has no VNNI, AMX or i8mm" in err) is warned
