"""The commands as a user types them."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import typer
from conftest import FAKE_SPEC, listing, write_fake_engine

from cgd_deploy.cli import app
from cgd_deploy.files import sha256_bytes, sha256_file
from cgd_deploy.limits import Limits
from cgd_deploy.pictures.images import read_images
from cgd_deploy.quality import bench as bench_module
from cgd_deploy.runtime.cuda.driver import has_gpu
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.search.index import read_index
from cgd_deploy.spec import Precision

COMMANDS = list(app.COMMANDS)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(folder)
    return folder


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run one line as typed, with the cgd-deploy of this Python first on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "200"}
    return subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, timeout=300)


def test_the_three_lines_of_the_card_work_as_typed(checkpoint, empty_folder):
    shutil.copy(checkpoint, "ckpt.pt")
    done = shell("cgd-deploy export ckpt.pt && cgd-deploy build-engine --int8 && cgd-deploy bench --seconds 0.5")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert listing(empty_folder).keys() == {
        "ckpt.pt",
        "artifacts",
        "artifacts/model.onnx",
        "artifacts/model.calibration.tsv",
        "artifacts/model-int8.cgd",
    }
    assert "smallest cosine with torch 1.0" in done.stdout or "smallest cosine with torch 0.9999" in done.stdout
    assert "model-int8.cgd" in done.stdout and "recall@1" in done.stdout and "gate passed" in done.stdout
    manifest = read_engine("artifacts/model-int8.cgd").manifest
    assert manifest.source["checkpoint"] == str(empty_folder / "ckpt.pt")
    assert manifest.source["onnx_sha256"] == sha256_file("artifacts/model.onnx")


def test_bench_alone_takes_every_engine_in_artifacts(cli, monkeypatch, noisy):
    for name in ("b", "a"):
        write_fake_engine(Path("artifacts") / f"{name}.cgd")
    asked = {}

    def bench(paths, options, on_progress):
        asked.update(asdict(options), paths=paths)
        raise bench_module.InputError("enough.")

    monkeypatch.setattr(bench_module, "bench", bench)
    assert cli("bench")[0] == 2
    assert asked["paths"] == [Path("artifacts/a.cgd"), Path("artifacts/b.cgd")]
    assert (asked["data"], asked["reference"], asked["limits"]) == (None, None, {})
    assert (list(asked["batch_sizes"]), asked["seconds"], asked["threads"]) == ([1, 8], 20.0, None)


def engine_of(path: str, onnx: bytes, checkpoint: bytes = b"weights") -> Path:
    """A fake engine that records its ONNX file and checkpoint."""
    source = {"onnx_sha256": sha256_bytes(onnx), "checkpoint_sha256": sha256_bytes(checkpoint)}
    return write_fake_engine(Path(path), source=source)


def test_bench_alone_leaves_stale_engines_out_by_name(cli, monkeypatch, pictures):
    reference = write_fake_engine(Path("exact.cgd"))
    engine_of("artifacts/old.cgd", b"old")
    engine_of("artifacts/new.cgd", b"new")
    Path("artifacts/model.onnx").write_bytes(b"new")
    options = ["--reference", reference, "--data", pictures, "--seconds", 0, "--batch", 1]
    code, out, err = cli("bench", *options)
    reason = "made from another ONNX file than model.onnx beside it"
    assert code == 0 and "new.cgd" in out and "old.cgd" not in out
    assert err == f"warning: artifacts/old.cgd is left out: {reason}; build it again, or name it to measure it.\n"
    code, out, err = cli("bench", "artifacts/old.cgd", *options, "-o", "b.json", "--html", "r.html")
    assert (code, err) == (0, "") and f"warning: old.cgd was {reason}." in out
    assert json.loads(Path("b.json").read_text())["engines"][0]["stale"] == reason
    assert f"old.cgd was {reason}." in Path("r.html").read_text()
    assert json.loads(cli("inspect", "artifacts/old.cgd")[1])["stale"] == reason
    assert json.loads(cli("inspect", "artifacts/new.cgd")[1])["stale"] is None


def test_bench_alone_refuses_engines_of_several_models_by_name(cli):
    engine_of("artifacts/a.cgd", b"1", b"first")
    engine_of("artifacts/b.cgd", b"2", b"second")
    code, out, err = cli("bench")
    assert (code, out) == (2, "") and "artifacts/ has engines of 2 models (a.cgd | b.cgd)" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(cli, command):
    code, out, err = cli(command, "--help")
    assert (code, err) == (0, "")
    assert f"cgd-deploy {command}" in out


def test_brackets_in_a_help_text_are_shown(cli):
    _, out, _ = cli("embed", "--help")
    assert "[default: (all that this process may use); x>=1]" in " ".join(out.split())


def test_the_help_names_every_command(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert all(re.search(rf"\b{command}\b", out) for command in COMMANDS)


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal_and_cites_no_page(cli, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = cli(*command.split(), "--help")
    assert max(map(len, out.splitlines())) <= width
    assert "<" not in out and ".md" not in out


def test_help_uses_a_wide_terminal(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert any(len(line) > 150 for line in cli("build-engine", "--help")[1].splitlines())


def test_every_option_says_in_words_what_it_takes():
    group = typer.main.get_command(app.app)
    for command in (group, *group.commands.values()):
        for param in command.params:
            assert getattr(param, "is_flag", False) or param.metavar, (command.name, param.name)
            if param.param_type_name == "option" and param.metavar:
                assert param.metavar.lower() != param.name, "typer 0.27 would write the option in capitals"


def test_help_puts_options_into_sections(cli):
    out = cli("build-engine", "--help")[1]
    sections = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    expected = (
        "Arguments, What to build, INT8, Limits of INT8, Choice by measurement, Batches, TensorRT and TensorRT-RTX"
    )
    assert sections == [*expected.split(", "), "Options"]
    assert out.index("\nINT8:") < out.index("--calib ") < out.index("\nLimits of INT8:") < out.index("--data ")


def test_the_help_lists_every_command_in_a_group_and_cuts_no_sentence(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = cli("--help")[1]
    groups = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert groups == ["Options", *app.GROUPS]
    assert "..." not in out.partition("Options:")[2]
    for title, commands in app.GROUPS.items():
        section = out.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()] == list(commands)


def test_the_help_names_every_limit(cli):
    assert all(field.name in cli("--help")[1] for field in fields(Limits))


def test_version():
    done = shell("cgd-deploy --version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cgd-deploy {metadata.version('cgd-deploy')}\n", "")


def on_a_terminal(line: str) -> str:
    """Run a command whose stderr is a terminal; returns what it writes there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "cgd_deploy", *line.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal, suppress(OSError):  # reading ends with an OSError
            while part := terminal.read(1 << 16):
                written += part
    assert process.returncode == 0
    return written.decode()


def test_quiet_shows_neither_bars_nor_notes_but_errors(fake, pictures):
    Path("some").mkdir()
    shutil.copy(pictures / "kind-0" / "0.jpg", "some/good.jpg")
    Path("some/bad.jpg").write_bytes(b"no picture")
    embed = "embed some -e fake.cgd -o o.npy"
    written = on_a_terminal(embed)
    assert "Embedding" in written and "left out: " in written
    assert on_a_terminal(f"--quiet {embed}") == ""
    done = shell(f"cgd-deploy --quiet {embed} --strict")
    assert done.returncode == 2 and done.stderr.startswith("cgd-deploy: some/bad.jpg") and done.stderr.count("\n") == 1


def test_training_is_quiet_too(monkeypatch):
    from cgd_train import trainer

    monkeypatch.setattr(trainer.errors, "quiet", True)
    progress = trainer._progress(quiet=False)
    assert progress.disable and progress.console.quiet


LOGGED = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO) cgd_deploy\.runtime\.(\w+): (.*)$"


def test_log_level_tells_an_operator_what_was_loaded(fake, pictures):
    embed = f"embed {pictures}/kind-0 -e fake.cgd -o o.npy --threads 3"
    loaded = "backend=fake precision=fp32 device=cpu threads=3 streams=1"
    expected = [
        ("DEBUG", "enginefile", r"fake\.cgd: reading and checking took \d+ ms"),
        ("DEBUG", "engine", r"fake\.cgd: fake took \d+ ms to load the model"),
        ("INFO", "engine", rf"loaded fake\.cgd: {loaded} space_id={FAKE_SPEC.space_id}"),
        ("INFO", "engine", r"closed fake\.cgd"),
    ]
    for level in ("debug", "info", "error"):
        done = shell(f"cgd-deploy --log-level {level} {embed}")
        wanted = [line for line in expected if level == "debug" or line[0] == level.upper()]
        told = re.findall(LOGGED, done.stderr, re.MULTILINE)
        assert done.returncode == 0 and len(done.stderr.splitlines()) == len(told) == len(wanted)
        assert all(a[:2] == b[:2] and re.fullmatch(b[2], a[2]) for a, b in zip(told, wanted, strict=True)), told


def test_a_log_and_a_bar_share_a_terminal(fake, pictures):
    loaded = r"(^|[\r\n]|\x1b\[2K)\S+ \S+ INFO cgd_deploy.runtime.engine: loaded fake.cgd"
    command = f"--log-level info embed {pictures} -e fake.cgd -o o.npy"
    written = on_a_terminal(command)
    assert "Embedding" in written and re.search(loaded, written)
    written = on_a_terminal(f"--quiet {command}")
    assert "Embedding" not in written and re.search(loaded, written)


def test_export_tells_its_parity(cli, monkeypatch, tmp_path):
    from cgd_export import onnx_from_checkpoint as module
    from cgd_export.parity import Parity

    asked = []

    def export(*arguments, **options):
        asked.append((*arguments, options))
        return Parity(0.99999, 0.999995, None, 5)

    monkeypatch.setattr(module, "onnx_from_checkpoint", export)
    code, out, err = cli("export", "ckpt.pt", "--json", "--keep-gem")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"path": "artifacts/model.onnx", "cosine_min": 0.99999, "pictures": 5}
    assert asked == [(Path("ckpt.pt"), Path("artifacts/model.onnx"), {"keep_gem": True})]
    assert "0.99999" in cli("export", "ckpt.pt", "-o", "other.onnx")[1]


def test_build_engine_names_an_engine_that_it_replaces(cli, model_onnx):
    build = ["build-engine", model_onnx, "--fp32", "-o", "e.cgd", "--backend", "onnxruntime"]
    assert cli(*build)[2] == cli(*build)[2] == ""
    code, _, err = cli(*build, "--max-batch", 32)
    assert (code, err) == (0, "warning: e.cgd was replaced; the earlier file differed.\n")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_build_engine_tells_what_it_built(cli, model_onnx, backend):
    code, out, err = cli("build-engine", model_onnx, "--int8", "--backend", backend, "-o", "e.cgd", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["path"], told["backend"], told["precision"]) == ("e.cgd", backend, "int8")
    assert told["parity"]["pictures"] == 15 and told["parity"]["cosine_min"] > 0.9
    manifest = read_engine("e.cgd").manifest
    assert (manifest.backend, manifest.precision) == (backend, Precision.INT8)
    assert told["retrieval"] is manifest.retrieval is None and told["trials"] == []  # no test pictures were given


def test_build_engine_names_the_engine_after_model_and_precision(cli, model_onnx):
    shutil.copy(model_onnx, "mine.onnx")
    code, out, _ = cli("build-engine", "mine.onnx", "--fp32", "--backend", "onnxruntime")
    assert code == 0 and Path("mine-fp32.cgd").is_file() and "mine-fp32.cgd" in out


@pytest.mark.parametrize("flags", [[], ["--int8", "--fp32"], ["--tf32", "--bf16"], ["--int8", "--fp16", "--fp32"]])
def test_build_engine_wants_one_precision(cli, flags):
    code, _, err = cli("build-engine", *flags)
    assert code == 2 and "exactly one of --int8, --bf16, --fp16, --tf32 and --fp32" in err
    assert err.count("\n") == (1 if flags else 3)


@pytest.mark.parametrize(
    ("sets", "backend", "first", "kept"),
    [
        (
            ["avx512_vnni", "avx512_bf16"],
            "openvino",
            "--int8, --bf16, --fp32",
            "--fp32 all, --bf16 0.96 to 0.98, --int8",
        ),
        (["avx512_vnni"], "openvino", "--int8, --fp32", "--fp32 all, --int8 0.85"),
        (["avx512_vnni", "amx_bf16"], "onnxruntime", "--int8, --fp32", "--fp32 all, --int8 0.85"),
        (["avx2"], "openvino", "--fp32, --int8", "--fp32 all, --int8 0.85"),
        ([], "tensorrt", "--int8, --fp16, --tf32, --fp32", "--fp32 all, --fp16 0.99, --int8 0.85"),
    ],
)
def test_without_a_precision_two_lines_explain_the_choice(cli, monkeypatch, sets, backend, first, kept):
    monkeypatch.setattr("cgd_deploy.hardware.cpu.instruction_sets", lambda: sets)
    code, _, err = cli("build-engine", "--backend", backend)
    fastest, neighbours, _ = err.splitlines()
    assert (code, fastest) == (2, f"{backend} here, fastest first: {first}.")
    assert neighbours.startswith(f"Of the ten nearest neighbours of ResNet-50, they keep: {kept}")


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, which would run the engine")
def test_build_engine_builds_tf32_without_a_gpu(cli, model_onnx):
    """The graph is the FP32 graph, so its parity does not show TF32; the summary says that it ran in FP32."""
    build = ["build-engine", model_onnx, "--tf32", "--backend", "onnxruntime", "-o", "e.cgd"]
    code, out, err = cli(*build)
    assert (code, err) == (0, "")
    assert "e.cgd: onnxruntime tf32, " in out and "(run on the graph, in FP32)" in out
    assert "convolution work: 100.0% fp32, which the GPU may multiply in TF32" in out
    file = read_engine("e.cgd")
    assert (file.manifest.precision, file.payload) == (Precision.TF32, Path(model_onnx).read_bytes())
    assert json.loads(cli("inspect", "e.cgd", "--json")[1])["precision"] == "tf32"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--backend", "openvino"],
            "openvino runs on CPUs, which have no TF32; use --fp32, or for an NVIDIA GPU --backen",
        ),
        (["--backend", "onnxruntime", "--autotune"], "onnxruntime runs tf32 on a GPU; leave --autotune out"),
    ],
)
def test_tf32_is_refused_where_it_cannot_be(cli, model_onnx, flags, told):
    code, out, err = cli("build-engine", model_onnx, "--tf32", *flags, "-o", "e.cgd")
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1
    assert not Path("e.cgd").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--data", "{0}"], "pass --max-recall-drop 0.1, --min-overlap 0.98 or both"),
        (["--max-recall-drop", "0.1"], "pass --data"),
        (["--min-overlap", "0.98"], "pass --data"),
        (["--data", "{0}", "--min-overlap", "98"], "expected 0 to 1"),
    ],
)
def test_limits_and_test_pictures_go_together(cli, pictures, flags, told):
    code, _, err = cli("build-engine", "not-looked-at.onnx", "--int8", *(flag.format(pictures) for flag in flags))
    assert code == 2 and err.count("\n") == 1 and told in err


def test_distill_tunes_what_int8_rounds(cli, model_onnx, pictures):
    shutil.copy(model_onnx, "model.onnx")
    options = ["build-engine", "model.onnx", "--int8", "--backend", "openvino", "--calib", pictures]
    assert cli(*options, "-o", "plain.cgd")[0] == 0
    code, _, err = cli(*options, "-o", "tuned.cgd", "--distill", pictures, "--distill-steps", 2)
    assert (code, err) == (0, "")
    plain, tuned = (read_engine(Path(name)).manifest for name in ("plain.cgd", "tuned.cgd"))
    assert tuned.source["distillation_sha256"] and not plain.source["distillation_sha256"]
    assert tuned.parity["cosine_mean"] > plain.parity["cosine_mean"]
    assert not list(Path().glob("*.unfinished"))
    read_images(pictures).subset(range(15, 30)).write("test.tsv")
    limits = ["--calib", pictures / "kind-0", "--data", "test.tsv", "--min-overlap", 0]
    code, _, err = cli(*options[:5], *limits, "--distill", pictures)
    assert code == 2 and "15 of 30 distillation pictures are among the test pictures" in err


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A backbone's weights as torchvision writes them."""
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_imported_weights_make_a_checkpoint_that_goes_all_the_way(cli, foreign, pictures):
    stated = ["--backbone", "resnet18", "--descriptors", "GS", "--dim", 16, "--size", 32, "--data", pictures]
    code, out, err = cli("import", foreign, *stated)
    assert (code, out) == (0, "ckpt.pt\n")
    assert "warning: " in err and "untrained" in err
    from cgd_train.checkpoint import load_checkpoint

    loaded = load_checkpoint("ckpt.pt")
    assert loaded.spec.descriptors == "GS" and loaded.origin["imported_from"] == "weights.pth"
    assert (len(loaded.calibration), len(loaded.evaluation.images)) == (15, 15)
    assert cli("export", "ckpt.pt")[0] == 0
    assert cli("build-engine", "--fp32")[0] == 0


def test_of_several_networks_one_is_imported_by_its_prefix(cli, foreign):
    import torch

    weights = torch.load(foreign, weights_only=True)
    both = {"teacher": weights, "student": {name: tensor * 2 for name, tensor in weights.items()}}
    torch.save(both, "both.pth")
    stated = ["both.pth", "--backbone", "resnet18", "--descriptors", "SG"]
    code, _, err = cli("import", *stated)
    assert code == 2 and err.count("\n") == 1
    assert "both.pth holds 2 models with a resnet18, at teacher, student; choose one with" in err
    assert cli("import", *stated, "--prefix", "student")[:2] == (0, "ckpt.pt\n")


@pytest.mark.parametrize("command", ["import", "train"])
def test_weights_that_cannot_be_downloaded_end_in_one_sentence(cli, pictures, tmp_path, monkeypatch, command):
    from torch import hub

    def urlopen(_):
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "urlopen", urlopen)
    weights = ["torchvision"] if command == "import" else ["--weights", "torchvision", "--data", pictures]
    code, out, err = cli(command, *weights, "--backbone", "resnet18", "--descriptors", "SG")
    told, sentence = err.splitlines()
    assert (code, out) == (2, "") and told.startswith("Downloading torchvision's weights to ")
    assert "could not be downloaded (<urlopen error no route>); download " in sentence
    assert not Path("ckpt.pt").exists() and not Path("runs").exists()


def test_import_says_what_does_not_fit(cli, foreign):
    code, _, err = cli("import", foreign, "--backbone", "resnet50", "--descriptors", "SG")
    assert code == 2 and err.count("\n") == 1 and "resnet18" in err
    assert not Path("ckpt.pt").exists()
    code, _, err = cli("import", foreign, "--backbone", "resnet18", "--descriptors", "SX")
    assert code == 2 and "descriptors='SX'" in err


def test_calibration_pictures_that_are_gone_are_named_with_the_way_out(cli, model_onnx):
    shutil.copy(model_onnx, "model.onnx")
    Path("model.calibration.tsv").write_text("image\tclass\n/gone/a.jpg\tx\n/gone/b.jpg\tx\n")
    before = listing(Path())
    code, _, err = cli("build-engine", "model.onnx", "--int8")
    assert code == 2 and err.count("\n") == 1
    assert "all 2 calibration pictures are gone, /gone/a.jpg" in err and "--calib" in err
    assert listing(Path()) == before


def test_without_a_calibration_list_calib_is_asked_for(cli, model_onnx, pictures):
    shutil.copy(model_onnx, "model.onnx")
    code, _, err = cli("build-engine", "model.onnx", "--int8")
    assert code == 2 and "--calib" in err
    assert cli("build-engine", "model.onnx", "--int8", "--calib", pictures / "kind-0")[0] == 0


def test_bench_writes_json_and_report_and_tells_the_gate(cli, engines, pictures, empty_folder):
    paths = [engines["openvino", "int8"], engines["onnxruntime", "int8"]]
    reference = engines["onnxruntime", "fp32"]
    options = ["--data", pictures, "--seconds", 0, "--batch", 2, "--json", "out/b.json", "--html", "r.html"]
    code, out, err = cli("bench", *paths, "--reference", reference, *options, "--max-recall-drop", 50)
    assert (code, err) == (0, "")
    result = json.loads(Path("out/b.json").read_text())
    assert [run["path"] for run in result["engines"]] == [str(path) for path in paths]
    assert result["gate"]["limits"]["int8"]["max_recall_drop_pp"] == 50
    assert "openvino-int8.cgd" in out and "gate passed" in out
    low, high = result["engines"][0]["recall_drop_interval_pp"]["1"]
    assert "95 %" in out and f"{0.0 - high:+.2f}..{0.0 - low:+.2f}" in out
    assert "openvino-int8" in Path("r.html").read_text()


def test_a_missed_gate_is_status_3_and_the_result_is_still_written(cli, noisy, pictures):
    exact = write_fake_engine(Path("exact.cgd"))
    hurt = write_fake_engine(Path("[hurt].cgd"), noise=2.0, backend="noisy", precision=Precision.INT8)
    code, out, err = cli(
        "bench", hurt, "--reference", exact, "--data", pictures, "--seconds", 0, "--json", "b.json", "--html", "r.html"
    )
    assert code == 3
    assert err.startswith("cgd-deploy: [hurt].cgd: ") and err.count("\n") == 1
    assert "gate failed: [hurt].cgd: overlap@10" in out
    assert not json.loads(Path("b.json").read_text())["gate"]["passed"] and Path("r.html").is_file()


QUICKLY = ["--seconds", 0, "--batch", 1]


def test_a_confident_gate_fails_where_the_mean_passes(cli, noisy, pictures):
    exact = write_fake_engine(Path("exact.cgd"))
    hurt = write_fake_engine(Path("hurt.cgd"), noise=0.5, backend="noisy", precision=Precision.INT8)
    options = ["bench", hurt, "--reference", exact, "--data", pictures, *QUICKLY, "--json", "b.json"]
    cli(*options, "--min-overlap", 0)
    run = json.loads(Path("b.json").read_text())["engines"][0]
    low, _ = run["overlap_at_10_interval"]
    assert low < run["overlap_at_10"] < 1
    limits = ["--min-overlap", run["overlap_at_10"], "--max-recall-drop", 100]
    code, out, _ = cli(*options, *limits)
    assert code == 0 and f"{run['overlap_at_10']:.3f}±" in out
    code, _, err = cli(*options, *limits, "--confident")
    assert code == 3 and f"overlap@10 is {low:.3f} at the worse end of the 95 % interval, wanted" in err


def test_bench_says_how_many_queries_recall_leaves_out(cli, fake, pictures):
    shutil.copytree(pictures, "data")
    Path("data/alone").mkdir()
    Path("data/kind-0/0.jpg").rename("data/alone/0.jpg")
    code, out, err = cli("bench", fake, "--reference", fake, "--data", "data", *QUICKLY, "-o", "b.json")
    assert (code, err) == (0, "")
    assert "note: recall leaves out 1 of 30 queries: there is no picture of their class to find.\n" in out
    assert json.loads(Path("b.json").read_text())["queries"] == {"asked": 30, "unanswerable": 1}
    assert "note:" not in cli("bench", fake, "--reference", fake, "--data", pictures, *QUICKLY)[1]


def test_bench_prints_json_as_every_command_does(cli, fake, pictures):
    bench = ["bench", fake, "--reference", fake, "--data", pictures, *QUICKLY]
    before = listing(Path())
    code, out, err = cli(*bench, "--json")
    assert (code, err, listing(Path())) == (0, "", before)
    assert json.loads(out)["engines"][0]["path"] == "fake.cgd"
    code, out, err = cli(*bench, "--json", "--out", "b.json")
    assert (code, err, json.loads(out)) == (0, "", json.loads(Path("b.json").read_text()))
    code, out, err = cli(*bench, "-o", "c.json")
    assert (code, err) == (0, "") and "gate passed" in out and Path("c.json").is_file()


@pytest.mark.parametrize("place", [1, 2])
def test_json_with_a_file_still_writes_it_and_prints_tables(cli, fake, pictures, place):
    options = ["--reference", fake, "--data", pictures, *QUICKLY]
    arguments = [fake, *options]
    arguments[place - 1 : place - 1] = ["--json", "b.json"]
    code, out, err = cli("bench", *arguments)
    assert (code, err) == (0, "") and "gate passed" in out
    assert json.loads(Path("b.json").read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--json", "a.json", "b.json"], "a.json and b.json are two"),
        (["--json", "a.json", "-o", "b.json"], "--out b.json and --json a.json name two"),
        (["--json", "b.txt"], "b.txt is not an engine; to write JSON into it pass --out b.txt"),
        (["-o", "fake.cgd"], "fake.cgd is an engine or a checkpoint"),
        (["--html", "fake.cgd"], "fake.cgd is an engine or a checkpoint"),
        (["--json", "engine.json"], "engine.json is an engine or a checkpoint"),
        (["a.json"], "there is no engine at a.json"),
    ],
)
def test_bench_never_writes_over_an_engine(cli, fake, arguments, told):
    shutil.copy(fake, "engine.json")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    code, out, err = cli("bench", fake, *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and told in err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_busy_machine_is_named_in_the_terminal(cli, fake, pictures, monkeypatch):
    load = {"busy": True, "cores": 2, "others": 1.25, "steal": 0.0}
    monkeypatch.setattr(bench_module, "load_between", lambda *_: load)
    code, out, _ = cli("bench", fake, "--reference", fake, "--data", pictures, *QUICKLY)
    assert code == 0 and "gate passed" in out
    assert "warning: this machine was busy: other processes took 1.25 of 2 cores while speed was measured" in out
    assert "images/s, measured on a busy machine; recall@1" in out


def test_bench_prints_the_references_own_latency_and_no_percentile_of_few_calls(cli, fake, pictures):
    _, out, _ = cli("bench", fake, "--reference", fake, "--data", pictures, *QUICKLY, "-o", "b.json")
    result = json.loads(Path("b.json").read_text())
    [reference] = result["reference"]["runs"]
    [line] = [line for line in out.splitlines() if line.startswith("reference ")]
    assert line.split() == [
        *("reference", "fake", "fp32", "1"),
        f"{reference['latency_ms']['p50']:.2f}",
        f"{reference['images_per_second']:.1f}",
    ]
    assert reference["latency_ms"]["p99"] is None  # of twelve calls


@pytest.fixture
def fake() -> Path:
    return write_fake_engine(Path("fake.cgd"))


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_embed_then_search(cli, fake, pictures, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = Path(f"index.{suffix}")
    code, told, err = cli("embed", pictures, "-e", fake, "-o", out, "--json")
    assert (code, err) == (0, "")
    assert json.loads(told) == {
        "path": str(out),
        "pictures": 30,
        "left_out": [],
        "space_id": FAKE_SPEC.space_id,
        "descriptor_dtype": "float32",
        "pca": None,
        "bytes_per_descriptor": 96,
    }
    query = pictures / "kind-3" / "2.jpg"
    code, told, err = cli("search", query, "-e", fake, "--index", out, "-k", 4, "--html", "found.html", "--json")
    assert (code, err) == (0, "")
    [found] = json.loads(told)
    assert found["query"] == str(query) and len(found["neighbours"]) == 4
    assert found["neighbours"][0] == {"path": str(query), "similarity": pytest.approx(1, abs=1e-4)}
    assert "2.jpg" in Path("found.html").read_text()
    code, told, _ = cli("search", query, "-e", fake, "--index", out, "-k", 1)
    assert told == f"{query}\n  1   1.0000  {query}\n"


@pytest.mark.parametrize(
    ("query", "k", "told"), [("*.jpg", 8, 1), ("0.jpg", 6, 1), ("0.jpg", 5, 0), ("[01].jpg", 10**9, 1)]
)
def test_search_shows_all_pictures_of_an_index_that_has_fewer_than_k(cli, fake, pictures, query, k, told):
    assert cli("embed", pictures / "kind-1", "-e", fake, "-o", "index.npy")[0] == 0
    search = ["search", pictures / "kind-1" / query, "-e", fake, "--index", "index.npy", "-k", k]
    code, out, err = cli(*search, "--json", "--html", "found.html")
    assert code == 0 and {len(found["neighbours"]) for found in json.loads(out)} == {5}
    assert err == f"warning: index.npy has fewer pictures than -k {k}: each query finds all 5.\n" * told
    code, out, _ = cli(*search)
    assert code == 0 and out.count("\n  5   ") == len(json.loads(cli(*search, "--json")[1]))


def test_search_tells_queries_in_blocks_and_neighbours_in_columns(cli, fake, pictures):
    os.symlink(pictures, "pictures")
    assert cli("embed", "pictures", "-e", fake, "-o", "index.npy")[0] == 0
    code, told, _ = cli("search", "pictures/kind-*/0.jpg", "-e", fake, "--index", "index.npy", "-k", 10)
    blocks = told.strip().split("\n\n")
    assert code == 0 and [block.splitlines()[0] for block in blocks] == [f"pictures/kind-{n}/0.jpg" for n in range(6)]
    for block in blocks:
        rows = block.splitlines()[1:]
        assert [int(row[:4]) for row in rows] == list(range(1, 11))
        assert {row.index("pictures/") for row in rows} == {15}


def test_the_page_of_another_folder_shows_every_picture(cli, fake, pictures, monkeypatch):
    Path("made").mkdir()
    os.symlink(pictures, "pictures")
    assert cli("embed", "pictures", "-e", fake, "-o", "made/index.npy")[0] == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    search = ["search", "../pictures/kind-3/2.jpg", "-e", "../fake.cgd", "--index", "../made/index.npy"]
    assert cli(*search, "--html", "found.html")[0] == 0
    page = Path("found.html").read_text()
    assert "cannot<br>be opened" not in page and page.count('class="label folder"') == 9


@pytest.mark.parametrize("statement", [None, "not safe to mix with an FP32 gallery: overlap@10 80.0 %", "safe to mix"])
def test_search_tells_once_that_precisions_are_mixed(cli, fake, pictures, statement):
    retrieval = statement and {"statement": statement}
    int8 = write_fake_engine(Path("int8.cgd"), precision=Precision.INT8, retrieval=retrieval)
    assert cli("embed", pictures, "-e", int8, "-o", "index.npy")[0] == 0
    search = ["search", pictures / "kind-1", "--index", "index.npy", "-k", 1, "-e"]
    assert cli(*search, int8, "--strict")[2] == ""
    code, _, err = cli(*search, fake)
    assert code == 0 and err.count("\n") == 1 and "holds int8 descriptors and the engine makes fp32 ones" in err
    assert err.startswith("note: " if statement == "safe to mix" else "warning: ")
    assert (statement or "was not measured") in err
    code, out, err = cli(*search, fake, "--strict")
    if statement == "safe to mix":
        assert (code, err.startswith("note: ")) == (0, True)
    else:
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("cgd-deploy: the index holds int8")


def test_an_unknown_way_to_name_pictures_is_refused_before_any_work(cli, fake, pictures):
    code, _, err = cli("embed", pictures, "-e", fake, "-o", "index.npy", "--paths", "near")
    assert (code, err) == (2, "cgd-deploy: paths='near' is unknown; expected one of relative, absolute.\n")


def test_embed_compactly_then_search(cli, fake, pictures):
    options = ["embed", pictures, "-e", fake, "-o", "index.npy", "--descriptor-dtype", "int8", "--pca", 12]
    code, told, err = cli(*options, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(told)
    assert (facts["descriptor_dtype"], facts["pca"], facts["bytes_per_descriptor"]) == ("int8", 12, 12)
    assert cli(*options)[1] == "index.npy: 30 pictures, 12 values each as int8, 12 bytes a descriptor, 0 left out\n"
    query = pictures / "kind-3" / "2.jpg"
    code, told, err = cli("search", query, "-e", fake, "--index", "index.npy", "-k", 2, "--json")
    assert (code, err) == (0, "")
    assert json.loads(told)[0]["neighbours"][0] == {"path": str(query), "similarity": pytest.approx(1, abs=1e-3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--descriptor-dtype", "int4"], "'int4' is unknown; expected one of float32, float16, int8, binary."),
        (["--pca", "25"], "pca=25 cannot be fitted to a gallery of 30 x 24 values; pass 1 to 24."),
        (["--pca", "0"], "pca=0 cannot be fitted to a gallery of 30 x 24 values; pass 1 to 24."),
    ],
)
def test_a_form_that_cannot_be_is_one_line(cli, fake, noisy, pictures, options, message):
    code, _, err = cli("embed", pictures, "-e", fake, "-o", "index.npy", *options)
    assert code == 2 and err.count("\n") == 1 and message in err
    assert not Path("index.npy").exists()
    bench = ["bench", fake, "--reference", fake, "--data", pictures, "--seconds", 0]
    code, _, err = cli(*bench, *options)
    assert code == 2 and err.count("\n") == 1 and message in err


def test_bench_measures_compact_galleries_on_demand(cli, fake, pictures):
    bench = ["bench", fake, "--reference", fake, "--data", pictures, "--seconds", 0, "--batch", 1]
    code, out, err = cli(*bench)
    assert (code, err) == (0, "") and "gallery kept as" not in out
    forms = ["--descriptor-dtype", "int8", "--descriptor-dtype", "binary", "--pca", 8]
    code, out, err = cli(*bench, *forms, "--json", "b.json", "--html", "r.html")
    assert (code, err) == (0, "")
    int8, binary = json.loads(Path("b.json").read_text())["engines"][0]["compact"]
    assert (int8["descriptor_dtype"], binary["descriptor_dtype"]) == ("int8", "binary")
    assert (int8["bytes_per_descriptor"], binary["bytes_per_descriptor"]) == (8, 1)
    for form in (int8, binary):
        low, high = form["recall_drop_interval_pp"]["1"]
        [line] = [line for line in out.splitlines() if line.startswith(f"  {form['descriptor_dtype']}, PCA 8 ")]
        assert f"{0.0 - high:+.2f}..{0.0 - low:+.2f}" in line and line.endswith(f"{form['overlap_at_10']:.3f}")
        assert f"{100 * form['recall']['1']:.2f}%" in line
    assert "Compact galleries" in Path("r.html").read_text()


@pytest.mark.parametrize("what", ["{0}/kind-1", "{0}/kind-1/*.jpg", "list.tsv"])
def test_embed_takes_a_folder_a_glob_or_a_list(cli, fake, pictures, what):
    names = [str(pictures / "kind-1" / f"{number}.jpg") for number in range(5)]
    Path("list.tsv").write_text("image\tclass\n" + "".join(f"{name}\tx\n" for name in names))
    assert cli("embed", what.format(pictures), "-e", fake, "-o", "o.npy")[0] == 0
    assert list(read_index("o.npy").paths) == names


def test_embed_leaves_out_bad_pictures_and_names_them(cli, fake, pictures):
    Path("some").mkdir()
    shutil.copy(pictures / "kind-0" / "0.jpg", "some/good.jpg")
    for name in ("[red]a[/nope].jpg", "b.jpg"):
        (Path("some") / name.replace("/", "%")).write_bytes(b"no picture")
    code, out, err = cli("embed", "some", "-e", fake, "-o", "o.npy")
    assert code == 0
    assert err.count("left out: ") == 2 and "[red]a[%nope].jpg" in err
    assert "1 pictures" in out and "2 left out" in out
    assert list(read_index("o.npy").paths) == ["some/good.jpg"]


def test_many_bad_pictures_are_told_in_few_lines(cli, fake, pictures):
    Path("some").mkdir()
    shutil.copy(pictures / "kind-0" / "0.jpg", "some/a.jpg")
    whole = Path("some/a.jpg").read_bytes()
    for number in range(30):
        Path(f"some/b{number:02}.jpg").write_bytes(b"no picture")
    for number in range(5):
        Path(f"some/c{number}.jpg").write_bytes(whole[: len(whole) // 2 + number])
    code, out, err = cli("embed", "some", "-e", fake, "-o", "o.npy", "--json")
    *told, last = err.splitlines()
    assert code == 0 and len(told) == 10 and all(line.startswith("left out: some/b0") for line in told)
    assert last.startswith("left out: 35 in all, 30 x cannot be decoded (no picture in one of the formats ")
    assert ", 5 x cannot be decoded (" in last
    left_out = json.loads(out)["left_out"]
    assert len(left_out) == 35 and left_out[0]["path"] == "some/b00.jpg"
    assert left_out[0]["reason"].startswith("cannot be decoded (no picture in one of the formats ")


def test_a_name_in_another_encoding_is_told_as_it_is(fake, pictures):
    Path("some").mkdir()
    try:
        shutil.copy(pictures / "kind-0" / "0.jpg", os.fsdecode(b"some/\xe9.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    command = [sys.executable, "-m", "cgd_deploy"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    subprocess.run([*command, "embed", "some", "-e", fake, "-o", "o.npy"], check=True, capture_output=True)
    search = [*command, "search", "some", "-e", fake, "--index", "o.npy", "-k", "1"]
    done = subprocess.run(search, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.count(b"some/\xe9.jpg") == 2


def test_embed_strict_stops_at_the_first_bad_picture(cli, fake, pictures):
    Path("some").mkdir()
    shutil.copy(pictures / "kind-0" / "0.jpg", "some/a.jpg")
    Path("some/b.jpg").write_bytes(b"no picture")
    code, _, err = cli("embed", "some", "-e", fake, "-o", "o.npy", "--strict")
    assert code == 2 and "b.jpg" in err and err.count("\n") == 1
    assert not Path("o.npy").exists() and not Path("o.npy.json").exists()


def test_inspect_shows_the_manifest(cli, fake):
    code, out, err = cli("inspect", fake)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["schema"] == 1 and facts["spec"]["space_id"] == FAKE_SPEC.space_id and "self_test" not in facts


def test_inspect_self_test_replays_the_golden_pictures(cli, engines):
    code, out, _ = cli("inspect", engines["onnxruntime", "int8"], "--self-test", "--json")
    assert code == 0 and json.loads(out)["self_test"]["cosine_min"] >= 0.999


def test_threads_reach_the_engine(cli, fake, pictures, monkeypatch):
    from cgd_deploy.runtime import engine

    asked = []
    make = engine.BACKENDS["fake"]["cpu"]
    monkeypatch.setitem(
        engine.BACKENDS["fake"], "cpu", lambda payload, **options: asked.append(options) or make(payload, **options)
    )
    cli("embed", pictures / "kind-0", "-e", fake, "-o", "o.npy", "--threads", 3)
    assert asked[0]["threads"] == 3


def test_a_bug_keeps_its_traceback(monkeypatch, fake):
    monkeypatch.setattr(sys, "argv", ["cgd-deploy", "inspect", str(fake)])
    monkeypatch.setattr("cgd_deploy.runtime.enginefile.read_engine", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        app.main()


def test_the_module_is_the_command(fake):
    done = subprocess.run([sys.executable, "-m", "cgd_deploy", "inspect", fake], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["backend"] == "fake"


def test_a_pillow_warning_is_not_printed(fake):
    from PIL import Image

    tiff = Image.Exif()
    tiff[0x0112] = 1
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save("a.jpg", exif=tiff)
    data = Path("a.jpg").read_bytes()
    # An orientation tag that claims more values than the file holds: Pillow warns and goes on.
    at = data.index(b"\x01\x12", data.index(b"Exif"))
    Path("a.jpg").write_bytes(data[: at + 4] + (60000).to_bytes(4, "big") + data[at + 8 :])
    done = shell("cgd-deploy embed a.jpg -e fake.cgd -o o.npy")
    assert (done.returncode, done.stderr) == (0, "")
