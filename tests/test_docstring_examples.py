"""The examples in the docstrings of public names run as they stand."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from pathlib import Path

import pytest

import cgd_deploy

EXAMPLE = re.compile(r"^Example:\n\n((?:    .*\n|\n)+)", re.MULTILINE)

WITH_EXAMPLES = (
    "Batching",
    "CgdError",
    "DeadlineExceeded",
    "Engine",
    "ImageList",
    "InputError",
    "Limits",
    "ModelSpec",
    "Overloaded",
    "Precision",
    "load",
    "read_images",
    "set_limits",
)


def example(name: str) -> str:
    """The example in the docstring of a public name; "" without one."""
    found = EXAMPLE.search(f"{inspect.getdoc(getattr(cgd_deploy, name))}\n")
    return textwrap.dedent(found[1]) if found else ""


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_an_example_runs(
    name: str, fake_engine: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with an engine and two photographs."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(fake_engine, "model.cgd")
    (tmp_path / "photos").mkdir()
    for place, letter in enumerate("ab"):
        shutil.copy(pictures / "kind-0" / f"{place}.jpg", tmp_path / "photos" / f"{letter}.jpg")
    code = example(name)
    assert code
    exec(compile(code, name, "exec"), {})
