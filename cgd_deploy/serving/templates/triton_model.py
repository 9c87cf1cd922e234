"""An engine file in Triton's Python backend. Written by `cgd-deploy export-triton`; config.pbtxt has its settings."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cgd_deploy import CgdError, load

USED = ctypes.c_char_p(b"used_dltensor")


class TritonPythonModel:
    """Triton prescribes the names of class and methods.

    Tensors pass as DLPack, because servers built for NumPy 1 read and write wrong values through NumPy 2 arrays.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load and test the engine on the device of the instance. An engine that fails never serves."""
        folder = Path(args["model_repository"]) / args["model_version"]
        device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"
        self.engine = load(folder / "engine.cgd", device=device)
        self.engine.self_test()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests from one batch. Triton refuses types and shapes that config.pbtxt does not allow."""
        parts: list[Any] = [
            np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "images")) for request in requests
        ]
        try:
            descriptors = self.engine.embed(parts[0] if len(parts) == 1 else np.concatenate(parts))
        except CgdError as error:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [pb_utils.InferenceResponse([to_tensor(rows)]) for rows in np.split(descriptors, ends)]

    def finalize(self) -> None:
        """Free the engine."""
        self.engine.close()


def to_tensor(rows: np.ndarray) -> Any:
    """float32 [n, dim] as an output tensor.

    Triton gives a used capsule another name than DLPack does, and NumPy prints an error when it frees such a capsule.
    So we set DLPack's name.
    """
    capsule = rows.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack("descriptors", capsule)
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), USED)
    return tensor
