"""An onnxruntime with a CUDA provider, whose sessions compute nothing: they only say what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

CUDA = "CUDAExecutionProvider"


class Options(SimpleNamespace):
    """Session options that keep their entries."""

    def __init__(self) -> None:
        super().__init__(entries={})

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class FakeOnnxRuntime:
    """Stands in for the module.

    image_shape, dim   shapes of every model
    provider           where sessions end up, whatever they are asked for
    refusal            while set, no session can be made, for this reason
    run                called for every batch
    preloaded          whether NVIDIA's libraries were loaded before the first session
    options            the options of each session
    settings           the provider's settings of each session
    """

    SessionOptions = Options

    def __init__(self, image_shape: Sequence[int] = (64, 64, 3), dim: int = 96) -> None:
        self.image_shape = image_shape
        self.dim = dim
        self.provider = CUDA
        self.refusal = ""
        self.run: Callable[..., None] = lambda binding, options: None
        self.preloaded: bool | None = None
        self.options: list[Options] = []
        self.settings: list[dict[str, str]] = []

    def get_available_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded = not self.options

    def RunOptions(self) -> Any:
        return SimpleNamespace(add_run_config_entry=lambda key, value: None)

    def InferenceSession(self, payload: bytes, options: Options, providers: Sequence[Any]) -> Any:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.options.append(options)
        self.settings += [provider[1] for provider in providers if provider[0] == CUDA]
        return SimpleNamespace(
            get_providers=lambda: [self.provider],
            get_inputs=lambda: [SimpleNamespace(shape=["batch", *self.image_shape])],
            get_outputs=lambda: [SimpleNamespace(shape=["batch", self.dim])],
            io_binding=lambda: SimpleNamespace(bind_input=lambda *_: None, bind_output=lambda *_: None),
            run_with_iobinding=self.run,
        )
