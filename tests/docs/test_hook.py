"""Pages keep their places in the repository, and load nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install -e '.[docs]'")

from mkdocs.config import load_config
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import hook

CONFIG = str(Path(hook.ROOT) / "mkdocs.yml")


@pytest.fixture
def config():
    config = load_config(CONFIG)
    config.plugins._current_plugin = "hook"  # MkDocs sets it while it calls one
    hook.on_config(config)
    return config


@pytest.fixture
def files(config):
    return hook.on_files(Files([File("pictures.md", config.docs_dir, config.site_dir, True)]), config)


def test_files_have_their_names_in_the_repository(files):
    names = [file.src_uri for file in files]
    assert {"README.md", "SECURITY.md", "docs/serving.md", "benchmarks/results/cpu.svg"} <= set(names)
    assert {"commands/embed.md", "reference/engines.md", "examples/native/index.md", "style.css"} <= set(names)
    assert "pictures.md" not in names


def test_the_navigation_lists_the_pages_that_are_made(config, files):
    sections = {title: value for entry in config.nav for title, value in entry.items()}
    assert "commands/bench.md" in sections["Commands"] and "reference/errors.md" in sections["Python"]
    assert not any(str(value).endswith("/*") for value in sections.values())
    assert sections["Start"] == "README.md"


def test_a_link_to_a_folder_leads_to_its_page(config, files):
    page = Page(None, files.get_file_from_path("docs/native.md"), config)
    text = "[a](../examples/native) [b](../SECURITY.md) [c](../nowhere)"
    expected = "[a](../examples/native/index.md) [b](../SECURITY.md) [c](../nowhere)"
    assert hook.on_page_markdown(text, page=page, config=config, files=files) == expected


def test_an_example_page_shows_the_source(files):
    page = files.get_file_from_path("examples/native/index.md").content_string
    assert "## embed.c\n\n````c\n" in page and "#include <cgd.h>" in page


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link href="//fonts.example/a.css" rel="stylesheet">',
        '<img alt="" src="http://pictures.example/a.png">',
    ],
    ids=["script", "style", "picture"],
)
def test_a_page_that_loads_from_another_host_is_refused(config, files, tag):
    page = Page(None, files.get_file_from_path("README.md"), config)
    with pytest.raises(PluginError, match=r"README\.md loads .* from another host"):
        hook.on_post_page(f"<html>{tag}</html>", page=page, config=config)
    allowed = '<a href="https://arxiv.org">CGD</a><script src="assets/a.js"></script>'
    hook.on_post_page(allowed, page=page, config=config)
