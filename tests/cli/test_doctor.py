"""doctor reports the installed runtimes, and other commands check them first."""

from __future__ import annotations

import json

import pytest

from cgd_deploy.cli import doctor
from cgd_deploy.cli.doctor import ROLES, examine
from cgd_deploy.errors import EngineError, MissingDependency
from cgd_deploy.hardware import cpu, packages
from cgd_deploy.hardware.packages import check_runtime
from cgd_deploy.runtime.cuda import facts
from cgd_deploy.runtime.cuda.driver import Device


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these packages are installed."""

    def pretend(*names: str) -> None:
        for module in (packages, doctor):
            monkeypatch.setattr(module, "package_version", lambda name: "1.0" if name in names else None)

    return pretend


@pytest.mark.parametrize(
    "names",
    [
        ("onnxruntime",),
        ("openvino",),
        ("onnxruntime-gpu", "openvino"),
        ("tensorrt",),
        ("tensorrt-rtx",),
        ("tensorrt-rtx-cu13-bindings",),
    ],
)
def test_one_runtime_is_enough(installed, names):
    installed(*names)
    check_runtime()
    assert examine()["problem"] is None


def test_without_a_runtime_one_sentence_says_what_to_install(installed):
    installed("numpy")
    with pytest.raises(MissingDependency, match="pip install 'onnxruntime>=") as caught:
        check_runtime()
    assert "\n" not in str(caught.value)
    assert examine()["problem"] == str(caught.value)


def test_two_wheels_of_onnx_runtime_are_refused_with_the_remedy(installed):
    installed("onnxruntime", "onnxruntime-gpu")
    with pytest.raises(MissingDependency, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        check_runtime()


def test_two_wheels_in_two_folders_do_no_harm(installed, monkeypatch):
    """A folder on PYTHONPATH overwrites nothing, and Python imports the first of the two."""
    installed("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(packages, "package_folder", {"onnxruntime": "site-packages", "onnxruntime-gpu": "extra"}.get)
    check_runtime()
    monkeypatch.setattr(packages, "package_folder", lambda name: "site-packages")
    with pytest.raises(MissingDependency, match="overwrite each other"):
        check_runtime()


@pytest.mark.parametrize(
    ("found", "fast"),
    [([], False), (["avx2", "avx512f"], False), (["avx512_vnni"], True), (["avx_vnni"], True), (["i8mm"], True)],
)
def test_fast_int8_needs_its_instructions(monkeypatch, found, fast):
    monkeypatch.setattr(cpu, "instruction_sets", lambda: found)
    assert examine()["fast_int8"] is fast


def test_the_gpu_is_told_with_its_driver(cli, monkeypatch, tmp_path):
    h100 = Device(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", cuda="13.0")
    monkeypatch.setattr(facts, "find_device", lambda: h100)
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release\nGCC 12.3.0\n")
    monkeypatch.setattr(facts, "DRIVER_VERSION", version)
    expected = {"name": h100.name, "compute_capability": "9.0", "cuda": "13.0", "driver": "580.159.03"}
    assert json.loads(cli("doctor", "--json")[1])["gpu"] == expected
    told = "gpu               name NVIDIA H100 80GB HBM3, compute capability 9.0, cuda 13.0, driver 580.159.03\n"
    assert told in cli("doctor")[1]
    monkeypatch.setattr(facts, "DRIVER_VERSION", tmp_path / "absent")
    assert examine()["gpu"]["driver"] == "unknown"


def test_without_a_gpu_the_reason_is_told(monkeypatch):
    def find_device() -> None:
        raise EngineError("this machine has no NVIDIA driver, which CUDA needs; install it.")

    monkeypatch.setattr(facts, "find_device", find_device)
    assert examine()["gpu"] == "none: this machine has no NVIDIA driver, which CUDA needs"


@pytest.mark.parametrize(
    ("package", "module"),
    [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx"), ("cuda-python", "cuda.bindings.runtime")],
)
def test_a_package_that_does_not_load_is_told_with_the_reason(cli, installed, monkeypatch, package, module):
    """A package may be installed while a library of NVIDIA is missing."""
    installed("openvino", package)

    def import_module(name: str) -> None:
        assert name == module
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    code, out, _ = cli("doctor")
    assert code == 0
    assert f"{package} is installed but cannot be loaded: libnvinfer.so.11: cannot open shared object file" in out


def test_what_is_installed_here_loads():
    assert examine()["broken"] == {}


def test_the_command_lists_every_package_it_knows(cli):
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    for name, role in ROLES.items():
        assert any(line.startswith(name) and role in line for line in out.splitlines())


def test_the_command_gives_json(cli):
    code, out, _ = cli("doctor", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["problem"] is None
    assert set(facts["packages"]) == set(ROLES)


@pytest.mark.parametrize("packages", [(), ("onnxruntime", "onnxruntime-gpu")])
def test_the_command_still_tells_everything_when_something_is_wrong(cli, installed, packages):
    installed(*packages)
    code, out, err = cli("doctor")
    assert code == 2 and "threads" in out
    assert err.startswith("cgd-deploy: ") and err.count("\n") == 1


@pytest.mark.parametrize("command", ["export ckpt.pt", "build-engine --int8", "bench", "embed . -e e.cgd -o o.npy"])
def test_the_first_command_says_it_too(cli, installed, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed()
    code, out, err = cli(*command.split())
    assert (code, out) == (2, "")
    assert "no runtime is installed" in err and err.count("\n") == 1
