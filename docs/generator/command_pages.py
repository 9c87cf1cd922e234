"""A page for each command, made from what ``--help`` shows."""

from __future__ import annotations

import re
from typing import Any

import typer

from cgd_deploy.cli.app import app
from cgd_deploy.cli.parser import help_sections

FOLDER = "commands"
PROGRAM = "cgd-deploy"


def pages() -> dict[str, str]:
    """The Markdown of each page, by its name: the overview first, then a page for each command."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name=PROGRAM)
    made = {f"{FOLDER}/index.md": _overview(group, context)}
    for name, command in group.commands.items():
        made[f"{FOLDER}/{name}.md"] = _page(name, command, typer.Context(command, info_name=name, parent=context))
    return made


def _overview(group: Any, context: typer.Context) -> str:
    commands = [(f"[`{name}`]({name}.md)", _text(command.help)) for name, command in group.commands.items()]
    options = help_sections(group, context)["Options"]
    return "\n\n".join(
        [
            "# Commands",
            _text(group.help),
            _usage(group, context),
            _table(("command", "does"), commands),
            "## Options of every command",
            f"These options stand before the command: `{PROGRAM} --quiet embed …`.",
            _options("option", options),
            "",
        ]
    )


def _page(name: str, command: Any, context: typer.Context) -> str:
    parts = [f"# {name}", _text(command.help), _usage(command, context)]
    for title, records in help_sections(command, context).items():
        parts += [f"## {title}", _options("argument" if title == "Arguments" else "option", records)]
    return "\n\n".join([*parts, ""])


def _usage(command: Any, context: typer.Context) -> str:
    return f"```\n{' '.join(command.get_usage(context).removeprefix('Usage:').split())}\n```"


def _options(head: str, records: list[tuple[str, str]]) -> str:
    """A table of options. A bracket that ends a help text has a column of its own: the default and the range."""
    rows = []
    for name, text in records:
        meaning, _, bracket = text.removesuffix("]").rpartition("  [") if text.endswith("]") else (text, "", "")
        default = re.sub(r"^\((.*)\)", r"\1", bracket.removeprefix("default: "))
        rows.append((f"`{name}`", _text(meaning), _text(default)))
    return f'<div class="options" markdown>\n\n{_table((head, "meaning", "default"), rows)}\n\n</div>'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines)


def _text(text: str) -> str:
    """A help text in Markdown: options are set as code, and every other sign stands for itself."""
    words = re.split(r"((?<![\w-])--?[a-z][\w-]*)", " ".join(text.split()))
    return "".join(f"`{word}`" if at % 2 else re.sub(r"([\\`*_<\[\]])", r"\\\1", word) for at, word in enumerate(words))
