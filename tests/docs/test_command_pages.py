"""Every command has a page that names all its options."""

from __future__ import annotations

import pytest
import typer

import command_pages
from cgd_deploy.cli.app import COMMANDS, app

GROUP = typer.main.get_command(app)


def test_every_command_has_a_page_and_a_line_in_the_overview():
    pages = command_pages.pages()
    assert list(pages) == ["commands/index.md", *(f"commands/{name}.md" for name in COMMANDS)]
    assert all(f"| [`{name}`]({name}.md) | " in pages["commands/index.md"] for name in COMMANDS)
    assert "`--log-level LEVEL`" in pages["commands/index.md"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_names_every_option(name):
    page = command_pages.pages()[f"commands/{name}.md"]
    assert page.startswith(f"# {name}\n")
    for param in GROUP.commands[name].params:
        assert all(option in page for option in param.opts if option.startswith("-")), param.opts


def test_options_stand_in_the_sections_of_the_help():
    page = command_pages.pages()["commands/embed.md"]
    ray = page[page.index("## Ray") :]
    assert "cgd-deploy embed [OPTIONS]" in page and "## Arguments" in page
    assert "`--workers N`" in ray and "`--engine" not in ray and "`-e, --engine FILE`" in page


def test_the_default_has_its_own_column():
    rows = command_pages._options(
        "option",
        [
            ("--plain N", "One."),
            ("--known N", "Two.  [default: 8; x>=1]"),
            ("--told N", "Three.  [default: (as many as fit); x>=1]"),
            ("--must N", "Four.  [required]"),
        ],
    )
    assert "| `--plain N` | One. |  |" in rows
    assert "| `--known N` | Two. | 8; x>=1 |" in rows
    assert "| `--told N` | Three. | as many as fit; x>=1 |" in rows
    assert "| `--must N` | Four. | required |" in rows


def test_signs_of_markdown_stand_for_themselves():
    assert command_pages._text("[a] *b* <c> with --two-words and -o") == (
        r"\[a\] \*b\* \<c> with `--two-words` and `-o`"
    )
    assert command_pages._table(("a",), [("x|y",)]).endswith("| x\\|y |")
