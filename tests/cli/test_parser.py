"""A dataclass becomes the options of a command, and its help has sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from cgd_deploy.cli.parser import Command, parsed


@dataclass(frozen=True, kw_only=True)
class Tone:
    times: Annotated[int, typer.Option(metavar="N", min=1, help="How often.")] = 1
    loud: Annotated[bool, typer.Option("--loud", help="Shout.", rich_help_panel="Tone")] = False


@dataclass(frozen=True, kw_only=True)
class GreetOptions(Tone):
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom to greet.")]
    sign: Annotated[str, typer.Option(metavar="MARK", help="Last letter.", rich_help_panel="Punctuation")]


def greet(options: GreetOptions) -> None:
    """Greet somebody."""
    text = f"hello {options.name}{options.sign} " * options.times
    print(text.upper() if options.loud else text)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(cls=Command)(parsed(greet))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_fields_are_the_options(run):
    assert run("Ada", "--sign", "!").output == "hello Ada! \n"
    assert run("Ada", "--sign", "?", "--times", "2", "--loud").output == "HELLO ADA? HELLO ADA? \n"


def test_a_field_without_a_default_is_required_and_a_value_is_checked(run):
    assert run("Ada").exit_code == 2 and run("--sign", "!").exit_code == 2
    assert run("Ada", "--sign", "!", "--times", "0").exit_code == 2


def test_sections_with_a_required_option_come_first_and_unnamed_ones_last(run):
    lines = run("--help").output.splitlines()
    titles = [line for line in lines if line.endswith(":")]
    assert titles == [
        "Arguments:",
        "Punctuation:",
        "Tone:",
        "Options:",
    ]
    assert "  Greet somebody." in lines and "  NAME         Whom to greet.  [required]" in lines


def test_explanations_of_all_sections_start_in_one_column(run):
    lines = run("--help").output.splitlines()
    found = [line.index(text) for text in ("Whom", "Shout", "How often", "Last") for line in lines if text in line]
    assert len(found) == 4 and len(set(found)) == 1
