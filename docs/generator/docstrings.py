"""Our docstrings as Markdown, for mkdocstrings.

A docstring lists names and their meanings in two aligned columns. Sentences say what a function returns and raises.
An example follows a line ``Example:``.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

from griffe import Extension, Object

import api_pages

ROW = re.compile(r"(\w+(?:, \w+)*) {2,}(\S.*)")
EXAMPLE = re.compile(r"^Example:\n\n((?: {4}.*\n|\n)*)", re.MULTILINE)
SENTENCE = re.compile(r"(?:Returns|Raises|Yields) ")
CODE = re.compile(r"``([^`]+)``|`([^`]+)`|\b([A-Z]\w+)\b")


class Markdown(Extension):
    """Turns every docstring into Markdown, and hides constructors that callers do not use."""

    def __init__(self) -> None:
        self._anchors = api_pages.anchors()

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.is_class and "dataclass" not in obj.labels:
            obj.members.pop("__init__", None)
        if obj.docstring:
            owner = obj if obj.is_class else obj.parent
            obj.docstring.value = markdown(obj.docstring.value, self._anchors, owner.name if owner else "")


def markdown(docstring: str, anchors: dict[str, str], owner: str = "") -> str:
    """A docstring with a table for each aligned block, and with its examples as blocks of Python.

    anchors   where the reference describes a name; the name becomes a link
    owner     the class that the docstring belongs to, whose members are named alone
    """
    parts = EXAMPLE.split(f"{docstring}\n")
    for at, part in enumerate(parts):
        parts[at] = _example(part) if at % 2 else _prose(_linked(part, anchors, owner))
    return "\n".join(parts)


def _example(code: str) -> str:
    return f"**Example**\n\n```python\n{dedent(code).strip()}\n```\n"


def _prose(text: str) -> str:
    """Paragraphs and tables. The meaning of a name may go on in lines that are indented."""
    lines: list[str] = []
    in_table = False
    for line in text.splitlines():
        if row := ROW.fullmatch(line):
            lines += [] if in_table else ["", "| name | meaning |", "|---|---|"]
            lines.append(f"| `{row[1].replace(', ', '`, `')}` | {_cell(row[2])} |")
            in_table = True
        elif in_table and line.startswith("  "):
            lines[-1] = f"{lines[-1].removesuffix(' |')} {_cell(line.strip())} |"
        else:
            lines += ["", line] if in_table or SENTENCE.match(line) else [line]
            in_table = False
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _linked(text: str, anchors: dict[str, str], owner: str) -> str:
    """``text`` with links at names in backquotes, and at classes of the interface without backquotes."""

    def link(found: re.Match[str]) -> str:
        name = found[1] or found[2] or found[3]
        anchor = anchors.get(f"{owner}.{name}") or anchors.get(name)
        if found[3] and (anchor is None or name == owner):
            return name
        return f"[`{name}`][{anchor}]" if anchor and name != owner else f"`{name}`"

    return CODE.sub(link, text)
