"""Every name of TensorRT's that the source touches, against what three releases have.

``tests/data`` holds an extract of each release: the names used here that it has. After touching a new name, write the
extracts again where the bindings are installed, here for MODULE:
``python tests/runtime/test_tensorrt_names.py MODULE > tests/data/FILE.json``.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[1]
RELEASES = ("tensorrt-10.16", "tensorrt-11.4", "tensorrt-rtx-1.7.1")

# Touched behind a look whether they are there, or only when RTX is asked for.
RTX_ONLY = {
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}

# What the variables of a file, or what its calls return, are.
OBJECTS = {
    "export/tensorrt.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "error": "ParserError",
        "profile": "IOptimizationProfile",
        "get_timing_cache": "ITimingCache",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
    },
    "export/proof.py:network_precisions": {
        "network": "INetworkDefinition",
        "layer": "ILayer",
        "get_output": "ITensor",
        "tensor": "ITensor",
        "inputs": "ITensor",
    },
    "cgd_deploy/runtime/backends/tensorrt.py": {
        "_runtime": "Runtime",
        "engine": "ICudaEngine",
        "_engine": "ICudaEngine",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "strategies": "DynamicShapesKernelSpecializationStrategy",
    },
}


def used() -> dict[str, str]:
    """Class or Class.member -> where it is touched."""
    found = {}
    for place, objects in OBJECTS.items():
        file, _, function = place.partition(":")
        tree: ast.AST = ast.parse((HERE.parent / file).read_text())
        if function:
            tree = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
        for node in ast.walk(tree):
            for name in _names(node, {**objects, "trt": "", "_trt": ""}):
                found[name] = f"{file}:{getattr(node, 'lineno', 0)}"
    return found


def _names(node: ast.AST, objects: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):  # what a subclass overrides
        for base in node.bases:
            if isinstance(base, ast.Attribute) and _called(base.value) in objects:
                methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                yield from (f"{base.attr}.{name}" for name in methods if not name.startswith("__"))
    owner = attribute = None
    if isinstance(node, ast.Attribute):
        owner, attribute = node.value, node.attr
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        owner, attribute = node.args[0], ast.literal_eval(node.args[1])
    if owner is None or attribute is None or attribute.startswith("__"):
        return
    if _called(owner) in objects:
        yield ".".join(filter(None, (objects[_called(owner)], attribute)))
    elif isinstance(owner, ast.Attribute) and _called(owner.value) in ("trt", "_trt"):
        yield f"{owner.attr}.{attribute}"


def _called(node: ast.AST) -> str:
    """The name by which an expression goes: x, self.x, x[0] and y.x() are all x."""
    if isinstance(node, (ast.Call, ast.Subscript)):
        return _called(node.func if isinstance(node, ast.Call) else node.value)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def has(module: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def extract(release: str) -> set[str]:
    return set(json.loads((HERE / "data" / f"{release}.json").read_text()))


def test_the_source_is_read() -> None:
    found = used()
    assert len(found) > 60
    assert {
        "Builder",
        "BuilderFlag.TF32",
        "IProgressMonitor.step_complete",
        "Builder.build_serialized_network",
        "ILayer.get_input",
        "ILogger.ERROR",
        "ITimingCache.serialize",
        "Runtime.deserialize_cuda_engine",
        "IExecutionContext.execute_async_v3",
    } <= set(found)
    assert set(found) >= RTX_ONLY


@pytest.mark.parametrize("release", RELEASES)
def test_names_exist(release: str) -> None:
    missing = {name: where for name, where in used().items() if name not in extract(release)}
    assert set(missing) == (set() if "rtx" in release else RTX_ONLY), missing


def test_the_extract_of_rtx_is_true() -> None:
    from conftest import tensorrt_rtx  # not above: this file is a program too

    rtx = tensorrt_rtx()
    assert extract("tensorrt-rtx-1.7.1") == {name for name in used() if has(rtx, name)}


if __name__ == "__main__":
    bindings = importlib.import_module(sys.argv[1])
    print(json.dumps(sorted(name for name in used() if has(bindings, name)), indent=0))
