"""The reference in torch: on CUDA, FP32 is FP32 and computed by cuDNN."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cgd_deploy.quality.reference import TorchBackend, products


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def settings(torch: Any) -> tuple[Any, ...]:
    return (
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.enabled,
    )


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_products_are_set_for_a_block_alone(torch: Any, precision: str) -> None:
    before = settings(torch)
    with pytest.raises(KeyError), products(torch, precision):
        assert settings(torch) == (precision, precision, True)
        raise KeyError
    assert settings(torch) == before


def test_each_run_has_its_products(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend.__new__(TorchBackend)
    backend._torch, backend._device = torch, "cuda"
    monkeypatch.setattr(backend, "_run", lambda images: settings(torch)[:2])
    assert (backend.run(None), backend.run_tf32(None)) == (("ieee", "ieee"), ("tf32", "tf32"))  # type: ignore[arg-type]


def test_the_cpu_is_not_asked_about_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend.__new__(TorchBackend)
    backend._torch, backend._device = SimpleNamespace(), "cpu"
    monkeypatch.setattr(backend, "_run", lambda images: images)
    assert backend.run("pixels") == "pixels"  # type: ignore[arg-type]
