"""A page for each folder of example programs, which shows their source."""

from __future__ import annotations

from pathlib import Path

FOLDER = "examples"
LANGUAGES = {".py": "python", ".c": "c", ".cpp": "cpp", ".txt": "cmake"}


def pages(root: Path) -> dict[str, str]:
    """The Markdown of each page, by its name; ``root`` is the repository."""
    folders = {path.parent for path in (root / FOLDER).rglob("*") if path.suffix in LANGUAGES}
    return {f"{folder.relative_to(root).as_posix()}/index.md": _page(folder, root) for folder in sorted(folders)}


def _page(folder: Path, root: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in LANGUAGES)
    blocks = [f"## {path.name}\n\n````{LANGUAGES[path.suffix]}\n{path.read_text('utf-8')}````\n" for path in files]
    return "\n".join([f"# {folder.relative_to(root).as_posix()}\n", *blocks])
