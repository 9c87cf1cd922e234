"""Autotuning: which settings are tried, which is taken, and that it is kept beside the engine, by machine."""

from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest
from conftest import FAKE_SPEC, TUNING, write_fake_engine
from PIL import Image

from cgd_deploy.errors import InputError
from cgd_deploy.limits import limits, set_limits
from cgd_deploy.runtime import engine as module
from cgd_deploy.runtime import tuning
from cgd_deploy.runtime.autotune import autotune
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.backends.parallel import Parallel
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.engine import load
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.runtime.tuning import Setting, candidates, choice, setting_here, this_machine, tuning_path, write_tuning
from cgd_deploy.spec import Precision


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
    monkeypatch.setattr("cgd_deploy.runtime.autotune.available_threads", lambda: 2)
    return fake_engine, autotune(fake_engine, seconds=0).tuning


def on_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process runs on a machine of that CPU."""
    monkeypatch.setattr(tuning, "cpu_name", lambda: name)


def test_what_was_measured_is_kept_beside_the_engine(tuned):
    path, found = tuned
    assert list(read_engine(path).tunings) == [found]
    batches = {setting["batch"] for setting in found["measured"]}
    assert batches == {1, 2, 4, 8}  # the profile of the engine ends at 8
    assert setting_here(read_engine(path).tunings, "throughput") == Setting(**found["throughput"])
    with load(path) as engine:
        assert engine.self_test() > 0.9999


def test_tuning_changes_no_byte_of_the_engine(fake_engine, monkeypatch):
    """Not the first time, nor again, nor on another machine."""
    before = fake_engine.read_bytes()
    for machine in ("one", "one", "another"):
        on_machine(machine, monkeypatch)
        autotune(fake_engine, seconds=0)
        assert fake_engine.read_bytes() == before
    assert {path.name for path in fake_engine.parent.iterdir()} == {"fake.cgd", "fake.cgd.tuning.json"}


def test_another_machine_does_not_follow_it(tuned, monkeypatch):
    path, _ = tuned
    on_machine("another", monkeypatch)
    assert setting_here(read_engine(path).tunings, "latency") is None


def test_machines_keep_their_tunings_side_by_side(fake_engine, monkeypatch):
    found = {}
    for batch, machine in enumerate(("one", "another", "third", "one"), start=2):
        on_machine(machine, monkeypatch)
        found[machine] = autotune(fake_engine, seconds=0, batches=[1, batch]).tuning
    for machine, tuned in found.items():
        on_machine(machine, monkeypatch)
        assert tuning.tuning_here(read_engine(fake_engine).tunings) == tuned
    assert len(read_engine(fake_engine).tunings) == 3


def test_an_engine_copied_alone_has_no_tuning(tuned, tmp_path):
    copy = tmp_path / "copy.cgd"
    copy.write_bytes(tuned[0].read_bytes())
    assert (read_engine(copy).tunings, read_engine(copy).untuned) == ([], None)


def test_an_engine_that_another_release_tuned_is_as_fast_as_it_was(told, monkeypatch):
    """Its tuning is in the manifest. What is measured since on the same machine counts more; the engine stays."""
    before = told.read_bytes()
    assert setting_here(read_engine(told).tunings, "throughput") == Setting(4, 2, 5)
    on_machine("another", monkeypatch)
    autotune(told, seconds=0, batches=[1])
    monkeypatch.undo()
    assert setting_here(read_engine(told).tunings, "throughput") == Setting(4, 2, 5)
    found = autotune(told, seconds=0, batches=[1]).tuning
    assert setting_here(read_engine(told).tunings, "throughput") == Setting(**found["throughput"])
    assert told.read_bytes() == before


UNUSABLE = {
    "another engine": (lambda text: text.replace('"manifest_sha256": "', '"manifest_sha256": "0'), "another engine"),
    "cut": (lambda text: text[:-40], "is not a tuning"),
    "empty": (lambda text: "", "is not a tuning"),
    "a list": (lambda text: "[]", "is not a tuning"),
    "deep": (lambda text: "[" * 100_000, "is not a tuning"),
    "not a number": (lambda text: text.replace('"batch": 1', '"batch": NaN'), "is not a tuning"),
    "of no threads": (lambda text: text.replace('"threads"', '"strings"'), "is not a tuning"),
    "too many threads": (lambda text: re.sub(r'"threads": \d+', '"threads": 2000000', text), "is not a tuning"),
    "settings with more": (lambda text: text.replace('"streams": 1', '"streams": 1, "lanes": 2'), "is not a tuning"),
    "a newer schema": (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2, this release reads 1"),
}


@pytest.mark.parametrize(("change", "told"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_tuning_that_cannot_be_used_is_named_and_left(tuned, cli, pictures, caplog, change, told):
    path, _ = tuned
    beside = tuning_path(path)
    beside.write_text(change(beside.read_text()))
    file = read_engine(path)
    assert file.tunings == [] and told in file.untuned
    assert str(beside) in file.untuned and file.untuned.endswith(", or remove the file.") and "\n" not in file.untuned
    with load(path) as engine:
        assert engine.self_test() > 0.9999
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [file.untuned]
    code, _, err = cli("embed", pictures, "-e", path, "-o", path.with_name("index.npy"))
    assert code == 0 and err.count(f"warning: {file.untuned}") == 1
    assert json.loads(cli("inspect", path)[1])["untuned"] == file.untuned
    found = autotune(path, seconds=0).tuning
    assert (read_engine(path).tunings, read_engine(path).untuned) == ([found], None)


def test_a_tuning_that_is_too_large_is_named_and_not_read(tuned):
    set_limits(manifest_bytes=tuned[0].stat().st_size)
    tuning_path(tuned[0]).write_text(" " * limits().manifest_bytes + "{}")
    assert "limit manifest_bytes" in read_engine(tuned[0]).untuned


def test_a_tuning_that_may_not_be_read_is_named(tuned, monkeypatch):
    def forbidden(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cgd_deploy.runtime.tuning.check_file", forbidden)
    assert "Permission denied)" in read_engine(tuned[0]).untuned


def test_a_tuning_that_cannot_be_written_is_one_sentence(fake_engine):
    tuning_path(fake_engine).mkdir()
    with pytest.raises(InputError, match=r"cannot write .*fake\.cgd\.tuning\.json: it is a folder; give"):
        autotune(fake_engine, seconds=0)


def test_inspect_tunes_an_engine_that_is_there(cli, fake_engine, monkeypatch):
    monkeypatch.setattr("cgd_deploy.runtime.autotune.SECONDS", 0.0)
    write_tuning(fake_engine, read_engine(fake_engine).manifest_sha256, TUNING)
    facts = json.loads(cli("inspect", fake_engine)[1])
    assert (facts["tuning"], facts["tuned_machines"], facts["untuned"]) == (None, [TUNING["machine"]], None)
    code, out, _ = cli("inspect", fake_engine, "--autotune", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["tuning"]["machine"] == this_machine()
    assert facts["tuned_machines"] == [TUNING["machine"], this_machine()]


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
    batches = module.batches
    monkeypatch.setattr(
        module, "batches", lambda images, spec, size, *more: sizes.append(size) or batches(images, spec, size, *more)
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
    with pytest.raises(InputError, match="tensorrt runs fp32 on a GPU"):
        autotune(path)
    path = write_fake_engine(tmp_path / "tf32.cgd", backend="onnxruntime", precision=Precision.TF32)
    with pytest.raises(InputError, match="onnxruntime runs tf32 on a GPU"):
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
    monkeypatch.setattr("cgd_deploy.runtime.autotune.SECONDS", 0.0)
    monkeypatch.setattr("cgd_deploy.runtime.autotune.BATCHES", (1, 2))
    monkeypatch.setattr("cgd_deploy.runtime.autotune.available_threads", lambda: 2)
    load = {"busy": True, "cores": 2, "others": 1.25, "steal": 0.0}
    monkeypatch.setattr("cgd_deploy.runtime.autotune.load_between", lambda *_: load)
    code, out, _ = cli("build-engine", model_onnx, "--fp32", "-o", tmp_path / "e.cgd", "--autotune")
    assert code == 0
    assert "warning: this machine was busy: other processes took 1.25 of 2 cores" in out
    (found,) = read_engine(tmp_path / "e.cgd").tunings
    assert found["load"] == load
    assert re.search(r"best throughput here: \d threads?, \d streams?, batch \d, [\d.]+ images/s", out)
    assert setting_here([found], "latency").batch == 1
    code, _, err = cli("build-engine", model_onnx, "--fp32", "-o", tmp_path / "e.cgd", "--max-batch", 16)
    assert code == 0 and "e.cgd.tuning.json was measured for another engine than e.cgd is now; measure again" in err


def test_autotuning_a_gpu_engine_is_refused_before_it_is_built(cli, model_onnx, tmp_path):
    out = tmp_path / "e.cgd"
    code, _, err = cli("build-engine", model_onnx, "--fp16", "-o", out, "--backend", "tensorrt-rtx", "--autotune")
    assert code == 2 and "leave --autotune out" in err and not out.exists()


@pytest.mark.parametrize(("found", "warned"), [(["avx2"], True), (["avx2", "avx_vnni"], False)])
def test_a_cpu_that_is_slow_in_int8_is_told_of(cli, model_onnx, tmp_path, monkeypatch, found, warned):
    monkeypatch.setattr("cgd_deploy.hardware.cpu.instruction_sets", lambda: found)
    code, _, err = cli("build-engine", model_onnx, "--int8", "-o", tmp_path / "e.cgd", "--backend", "onnxruntime")
    assert code == 0 and ("this CPU has no VNNI, AMX or i8mm" in err) is warned
