"""An inference host has no torch, and --help waits for nothing."""

from __future__ import annotations

import inspect
import json
import pydoc
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest

import cgd_deploy
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import install_line
from cgd_deploy.runtime.enginefile import EngineFile, Manifest

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "cuda", "pyarrow")

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])

sys.meta_path.insert(0, Blocked())
"""


def python(code: str, *arguments: object, blocked: tuple[str, ...] = (), timings: bool = False) -> str:
    """Run code in a fresh interpreter in which some packages are not installed; returns what it prints."""
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = f"import json; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"


def test_importing_cgd_deploy_loads_no_runtime_and_no_torch():
    assert json.loads(python(f"import cgd_deploy; cgd_deploy.load; {LOADED}")) == []


def test_an_engine_runs_without_torch_and_onnx(fake_engine, pictures):
    code = """
from cgd_deploy import load, read_images
images = read_images(sys.argv[2])
with load(sys.argv[1]) as engine:
    print(engine.embed(images.paths[:3]).shape, engine.self_test() > 0.999)
"""
    blocked = tuple(name for name in HEAVY if name != "pyarrow")
    assert python(code, fake_engine, pictures, blocked=blocked) == "(3, 24) True\n"


def test_a_real_engine_runs_without_torch(engines, pictures):
    code = """
from cgd_deploy import load, read_images
with load(sys.argv[1]) as engine:
    print(engine.embed(read_images(sys.argv[2]).paths[:3]).shape)
"""
    blocked = ("torch", "torchvision", "onnx", "onnxscript")
    assert python(code, engines["onnxruntime", "int8"], pictures, blocked=blocked) == "(3, 96)\n"


def test_an_engine_for_cuda_is_loaded_without_onnx(engines):
    """The device and ONNX Runtime are imagined; the engine file, its ONNX model and all of our code are real."""
    code = """
sys.path.append(sys.argv[2])
from fake_cuda import FakeDriver
from fake_onnxruntime import FakeOnnxRuntime
from cgd_deploy import load
from cgd_deploy.runtime.backends import onnxruntime_cuda
driver = FakeDriver()
onnxruntime_cuda.import_onnxruntime, onnxruntime_cuda.CudaDriver = FakeOnnxRuntime, lambda: driver
with load(sys.argv[1], device="cuda", warm_up=False) as engine:
    print(engine.device, engine._backend.streams.layout.image_shape)
driver.assert_empty()
"""
    found = python(code, engines["onnxruntime", "fp32"], Path(__file__).parent, blocked=HEAVY)
    assert found == "cuda (64, 64, 3)\n"


MAIN = """
from cgd_deploy.cli.app import main
sys.argv = ["cgd-deploy", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print("status", end.code, file=sys.stdout)
"""


@pytest.mark.parametrize(
    ("missing", "command", "extra", "package"),
    [
        ("torch", "export ckpt.pt", "train", ""),
        ("torchvision", "train --data .", "train", ""),
        ("openvino", "embed . -e openvino.cgd -o o.npy", "cpu", "openvino"),
        ("pyarrow", "embed . -e fake.cgd -o o.parquet", "parquet", ""),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_line_that_installs_it(
    missing, command, extra, package, tmp_path, pictures, monkeypatch
):
    from conftest import write_fake_engine

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes((pictures / "kind-0" / "0.jpg").read_bytes())
    write_fake_engine(tmp_path / "fake.cgd")
    write_fake_engine(tmp_path / "openvino.cgd", backend="openvino")
    code = BLOCKED.format(blocked=(missing,)) + MAIN
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True)
    assert done.stdout == "status 2\n"
    assert done.stderr.count("\n") == 1 and f"`{install_line(extra, package)}`" in done.stderr


def test_every_public_name_exists_and_is_documented():
    assert cgd_deploy.__all__ == sorted(cgd_deploy.__all__)
    for name in cgd_deploy.__all__:
        documented = inspect.getdoc(getattr(cgd_deploy, name))
        assert documented and not documented.startswith(f"{name}("), name  # a dataclass documents itself like that


def test_every_public_method_and_property_is_documented():
    classes = [value for name in cgd_deploy.__all__ if inspect.isclass(value := getattr(cgd_deploy, name))]
    for owner in (*classes, EngineFile, Evaluation, Manifest):
        for name in vars(owner):
            member = getattr(owner, name)
            documentable = inspect.isroutine(member) or isinstance(member, (property, cached_property))
            assert name.startswith("_") or not documentable or inspect.getdoc(member), f"{owner.__name__}.{name}"


def test_dir_and_help_show_every_public_name():
    assert sorted(dir(cgd_deploy)) == cgd_deploy.__all__
    page = pydoc.plain(pydoc.render_doc(cgd_deploy))
    assert "class Engine(" in page and "class Index(" in page and "    load(path: " in page and "read_index(" in page


def test_nothing_is_logged_by_default(fake_engine):
    code = """
import logging
from cgd_deploy import load
load(sys.argv[1]).close()
logging.getLogger("cgd_deploy").error("an error")
"""
    command = [sys.executable, "-c", f"import sys\n{code}", fake_engine]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""


def test_every_public_class_and_function_is_exported():
    found = {name for name, value in vars(cgd_deploy).items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert {name for name in found if not name.startswith("_")} - {"Any"} <= set(cgd_deploy.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Embedder'"):
        cgd_deploy.Embedder  # noqa: B018


def test_every_error_is_a_cgd_error():
    errors = [getattr(cgd_deploy, name) for name in cgd_deploy.__all__ if name.endswith("Error")]
    assert len(errors) == 7 and all(issubclass(error, cgd_deploy.CgdError) for error in errors)


def test_help_loads_neither_numpy_nor_anything_heavier():
    code = f"{MAIN}\nprint([name for name in {(*HEAVY, 'numpy', 'PIL', 'jinja2')!r} if name in sys.modules])"
    assert python(code, "--help").splitlines()[-1] == "[]"
