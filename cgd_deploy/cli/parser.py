"""Turns a function of one dataclass into a Typer command: each field is an option, and the help has sections."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from typer.core import TyperCommand, TyperGroup

Rows = list[tuple[str, str]]

OPTIONS = "Options"
"""The section of options that name no other section."""
COLUMN = 25
"""Widest name that still has its explanation on the same line."""


def parsed(run: Callable[[Any], None]) -> Callable[..., None]:
    """``run`` takes one dataclass; the result takes its fields as keywords, with the signature that Typer reads.

    Example:

        @dataclass(frozen=True, kw_only=True)
        class GreetOptions:
            name: Annotated[str, typer.Option(metavar="NAME", help="Whom to greet.")]

        def greet(options: GreetOptions) -> None:
            print(f"hello {options.name}")

        app.command()(parsed(greet))
    """
    options = get_type_hints(run)["options"]
    hints = get_type_hints(options, include_extras=True)

    def command(**given: Any) -> None:
        run(options(**given))

    command.__name__, command.__doc__ = run.__name__, run.__doc__
    command.__annotations__ = hints
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]
    )
    return command


def help_sections(command: Any, ctx: Any) -> dict[str, Rows]:
    """The name and the text of each argument and option, by the title of its section.

    Arguments come first, then sections with a required option. Options without a section come last.
    """
    arguments: Rows = []
    sections: dict[str, Rows] = {}
    required = set()
    for param in command.get_params(ctx):
        name, text = param.get_help_record(ctx)
        if param.param_type_name == "argument":
            arguments.append((name.split()[0], text))  # without the Python type
            continue
        title = param.rich_help_panel or OPTIONS
        sections.setdefault(title, []).append((name, text))
        if param.required:
            required.add(title)
    order = sorted(sections, key=lambda title: (title not in required, title == OPTIONS))
    found = {"Arguments": arguments, **{title: sections[title] for title in order}}
    return {title: rows for title, rows in found.items() if rows}


class Command(TyperCommand):
    """A command whose help lists its arguments and options in the sections of ``help_sections``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write(help_sections(self, ctx), formatter)


class Group(TyperGroup):
    """The program, whose help lists its commands in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, Rows] = {}
        commands: Any = self.commands
        longest = max(map(len, commands))
        for name, command in commands.items():
            text = command.get_short_help_str(formatter.width)
            sections.setdefault(command.rich_help_panel, []).append((name.ljust(longest), text))
        _write(sections, formatter)


def _write(sections: dict[str, Rows], formatter: Any) -> None:
    """Write each section; the explanations of all sections start in the same column."""
    names = [name for rows in sections.values() for name, _ in rows]
    width = max((len(name) for name in names if len(name) <= COLUMN), default=COLUMN)
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=width)
