"""The pages of the documentation site. MkDocs calls the functions whose names begin with ``on_``.

Pages keep their places in the repository, so that links between them work on the site as they do on GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import api_pages
import command_pages
import example_pages

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ("*.md", "docs/*.md", "benchmarks/README.md", "benchmarks/results/*.svg")
STYLE = "docs/generator/style.css"
ELSEWHERE = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*\s(?:src|href)=["']?(?:https?:)?//[^>]*>""")


def generated() -> dict[str, str]:
    """The Markdown of each page that no file holds, by the page's name."""
    return {**command_pages.pages(), **api_pages.pages(), **example_pages.pages(ROOT)}


def on_config(config: MkDocsConfig) -> None:
    """Replace each folder/* in the navigation by the pages that are made in this folder."""
    names = list(generated())
    config.nav = [_with_pages(entry, names) for entry in config.nav or []]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Keep the files of the theme, and add ours under their names in the repository."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    names = [path.relative_to(ROOT).as_posix() for pattern in PUBLISHED for path in sorted(ROOT.glob(pattern))]
    ours = [File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names]
    made = [File.generated(config, name, content=text) for name, text in generated().items()]
    style = File.generated(config, "style.css", abs_src_path=str(ROOT / STYLE))
    return Files([*kept, *ours, *made, style])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let a link to a folder lead to the page of this folder."""
    here = posixpath.dirname(page.file.src_uri)

    def to_page(link: re.Match[str]) -> str:
        index = posixpath.normpath(posixpath.join(here, link[1], "index.md"))
        return f"]({link[1]}/index.md)" if files.get_file_from_path(index) else link[0]

    return re.sub(r"\]\(([\w./-]+)\)", to_page, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Refuse a page that makes the reader's browser fetch something from another host."""
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found[0]} from another host; add the file to the site instead.")


def _with_pages(entry: Any, names: list[str]) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, value),) = entry.items()
    if isinstance(value, str) and value.endswith("/*"):
        value = [name for name in names if name.startswith(value[:-1])]
    return {title: value}
