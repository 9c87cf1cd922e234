"""What many tests share: small pictures, one small checkpoint, and everything made from it once a session."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver
from native_build import plain_prefix, prefix, python_prefix  # noqa: F401  (fixtures)
from native_ctypes import expected, library, native_engine, opened  # noqa: F401  (fixtures)
from native_pictures import limited, native  # noqa: F401  (fixtures)
from PIL import Image
from served import gate, index_file, photos, serving  # noqa: F401  (fixtures)

from cgd_deploy import limits
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.hardware import cpu
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.runtime import engine
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.enginefile import Manifest, write_engine
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import ModelSpec, Precision

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's spinning threads are slow wherever cores are shared
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests import onnxruntime before cgd-deploy does

SPEC = ModelSpec(backbone="resnet18", descriptors="SMG", dim=96, input_size=(64, 64))
FAKE_SPEC = replace(SPEC, dim=24, descriptors="SG", input_size=(32, 32), space_id="0123456789abcdef")
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TUNING = {
    "machine": {"cpu": "one that nobody has", "instruction_sets": [], "threads": 6},
    "latency": {"threads": 6, "streams": 1, "batch": 1},
    "throughput": {"threads": 6, "streams": 3, "batch": 12},
    "measured": [],
}
"""What autotuning found on another machine."""
CLASSES = 6
A_CLASS = 5


def draw(kind: int, number: int) -> Image.Image:
    """A picture of class ``kind``: its own colour and stripes, with another phase, size and noise each time."""
    random = np.random.default_rng((kind, number))
    height, width = random.integers(70, 110, 2)
    y, x = np.mgrid[0:height, 0:width] / 40.0
    angle = kind * np.pi / CLASSES
    stripes = np.sin((4 + 2 * kind) * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6))
    colour = 125 + 60 * np.cos(2 * np.pi * (kind / CLASSES + np.arange(3) / 3))
    pixels = colour + 30 * stripes[..., None] + random.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def tensorrt_rtx() -> ModuleType:
    """TensorRT-RTX's bindings; skips the test that calls this where they are not installed."""
    bindings: ModuleType = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError
    )
    return bindings


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This CPU says that it has AVX512-BF16. If it has not, OpenVINO emulates BF16, which takes AVX-512."""
    real = cpu.instruction_sets()
    if "avx512f" not in real:
        pytest.skip("OpenVINO emulates BF16 on CPUs with AVX-512 only")
    monkeypatch.setattr(cpu, "instruction_sets", lambda: [*real, "avx512_bf16"])


@pytest.fixture
def no_bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This CPU says that it has no BF16."""
    real = cpu.instruction_sets()
    monkeypatch.setattr(cpu, "instruction_sets", lambda: [name for name in real if name not in cpu.FAST_BF16])


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    """A made CUDA device; nothing of it is left allocated when the test ends."""
    driver = FakeDriver()
    yield driver
    driver.assert_empty()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights do not depend on the tests that ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def limits_as_before() -> Iterator[None]:
    """A test that changes the limits of the process, and with them Pillow's own, changes them for itself."""
    before, of_pillow = limits.limits(), Image.MAX_IMAGE_PIXELS
    yield
    limits._limits, Image.MAX_IMAGE_PIXELS = before, of_pillow


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 6 classes with 5 JPEG files each."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in range(CLASSES):
        (folder / f"kind-{kind}").mkdir()
        for number in range(A_CLASS):
            draw(kind, number).save(folder / f"kind-{kind}" / f"{number}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 6 classes with 7 pictures each, none of them ``pictures``."""
    folder = tmp_path_factory.mktemp("unseen")
    for kind in range(6):
        (folder / f"kind-{kind}").mkdir()
        for number in range(7):
            draw(kind, 100 + number).save(folder / f"kind-{kind}" / f"{number}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def picture_list(pictures: Path) -> ImageList:
    return read_images(pictures)


@pytest.fixture(scope="session")
def checkpoint(picture_list: ImageList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with an auxiliary head; its BatchNorm has seen the pictures, so activations are sane."""
    import torch

    from cgd_deploy.pictures.preprocess import preprocess
    from cgd_train.checkpoint import Checkpoint, save_checkpoint
    from cgd_train.model import CGD, DeployModel

    calibration, testing = picture_list.split_classes()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = CGD(SPEC, classes=3)
        pixels = torch.from_numpy(np.stack([preprocess(path, SPEC) for path in picture_list.paths]))
        normalized = DeployModel(model).normalized(pixels)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()
        model(normalized)
    saved = Checkpoint(model.eval(), calibration, Evaluation(testing))
    return save_checkpoint(saved, tmp_path_factory.mktemp("checkpoint") / "ckpt.pt")


@pytest.fixture(scope="session")
def torch_descriptors(checkpoint: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The reference: uint8 [N, 64, 64, 3] -> descriptors of the checkpoint in torch."""
    from cgd_deploy.quality.reference import TorchBackend

    return TorchBackend(checkpoint, threads=2).run


@pytest.fixture(scope="session")
def model_onnx(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint exported; its calibration list lies beside it."""
    from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint

    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx_from_checkpoint(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def engines(model_onnx: Path) -> dict[tuple[str, str], Path]:
    """(backend, precision) -> engine."""
    from cgd_export.engine_from_onnx import calibration_list, engine_from_onnx

    calibration = calibration_list(model_onnx, None)
    paths = {}
    for backend in ("onnxruntime", "openvino"):
        for precision in (Precision.FP32, Precision.INT8):
            path = model_onnx.with_name(f"{backend}-{precision.value}.cgd")
            engine_from_onnx(model_onnx, path, precision, backend=backend, calibration=calibration)
            paths[backend, precision.value] = path
    return paths


@pytest.fixture(scope="session")
def pixels(picture_list: ImageList) -> np.ndarray:
    """All pictures as the model of ``checkpoint`` sees them: uint8 [30, 64, 64, 3]."""
    from cgd_deploy.pictures.preprocess import preprocess

    return np.stack([preprocess(path, SPEC) for path in picture_list.paths])


class NoisyBackend(FakeBackend):
    """A fake that quantization has hurt: noise that depends on the picture alone."""

    def __init__(self, payload: bytes, **options: Any) -> None:
        super().__init__(payload, **options)
        self._noise = json.loads(payload)["noise"]

    def run(self, images: np.ndarray) -> np.ndarray:
        clean = super().run(images)
        seeds = images.reshape(len(images), -1).sum(axis=1, dtype=np.int64)
        noise = np.stack([np.random.default_rng(seed).normal(size=clean.shape[1]) for seed in seeds])
        noisy = clean + self._noise * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines for backend "noisy" can be loaded."""
    monkeypatch.setitem(engine.BACKENDS, "noisy", {"cpu": NoisyBackend})


def write_fake_engine(path: Path, spec: ModelSpec = FAKE_SPEC, noise: float = 0.0, **changes: Any) -> Path:
    """An engine for the backend without a model; ``changes`` to its manifest."""
    payload = json.dumps({"dim": spec.dim, "noise": noise} if noise else {"dim": spec.dim}).encode()
    golden = golden_images(spec, 3)
    manifest = Manifest(
        spec=spec,
        backend="fake",
        precision=Precision.FP32,
        payload="model.json",
        profile={"min": 1, "opt": 4, "max": 8},
        builder={"name": "fake", "version": "0", "cgd_deploy": "0"},
    )
    runner = NoisyBackend(payload) if noise else FakeBackend(payload)
    return write_engine(path, replace(manifest, **changes), payload, golden, runner.run(golden))


@pytest.fixture
def fake_engine(tmp_path: Path) -> Path:
    """A whole engine that needs neither torch nor ONNX Runtime."""
    return write_fake_engine(tmp_path / "fake.cgd")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run ``cgd-deploy`` with these arguments in this process; returns exit status, stdout and stderr."""
    from cgd_deploy.cli.app import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cgd-deploy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0 if code is None else 1), *capsys.readouterr()

    return run


def script(name: str) -> ModuleType:
    """benchmarks/NAME.py as a module of its own, made anew by each call."""
    spec = spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder below ``folder`` with its size, to show that nothing was written."""
    return {str(p.relative_to(folder)): p.stat().st_size * p.is_file() for p in folder.rglob("*")}
