"""The reference of the Python interface: every name of ``cgd_deploy.__all__``, on the page of its module."""

from __future__ import annotations

import inspect
from functools import cached_property

import cgd_deploy
from cgd_deploy import errors

FOLDER = "reference"
PAGES = {
    "Engines": "cgd_deploy.runtime",
    "Galleries": "cgd_deploy.search",
    "Pictures": "cgd_deploy.pictures",
    "Models": "cgd_deploy.spec",
    "Limits": "cgd_deploy.limits",
    "Errors": "cgd_deploy.errors",
}
"""Title of each page, and where the names on it are defined."""


def names() -> dict[str, list[str]]:
    """The names on each page: functions, then classes. Raises ValueError for a name that has no page."""
    found: dict[str, list[str]] = {title: [] for title in PAGES}
    for name in sorted(cgd_deploy.__all__, key=lambda name: inspect.isclass(getattr(cgd_deploy, name))):
        found[_title(name)].append(name)
    return found


def pages() -> dict[str, str]:
    """The Markdown of each page, by its name; mkdocstrings replaces each line with ``:::``."""
    found = names()
    made = {f"{FOLDER}/index.md": _overview(found)}
    for title, listed in found.items():
        tree = inspect.getdoc(errors) if title == "Errors" else None
        intro = "\n```\n{}\n```\n".format(tree.partition("\n\n")[2]) if tree else ""
        made[_page(title)] = f"# {title}\n{intro}" + "".join(f"\n::: cgd_deploy.{name}\n" for name in listed)
    return made


def anchors() -> dict[str, str]:
    """Where the reference describes each name and each documented member of a class, for example Engine.embed."""
    found = list(cgd_deploy.__all__)
    for name in cgd_deploy.__all__:
        if inspect.isclass(owner := getattr(cgd_deploy, name)):
            found += [f"{name}.{member}" for member, value in vars(owner).items() if _is_described(member, value)]
    return {name: f"cgd_deploy.{name}" for name in found}


def _is_described(name: str, member: object) -> bool:
    kinds = (property, cached_property, classmethod, staticmethod)
    return not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds))


def _overview(found: dict[str, list[str]]) -> str:
    rows = [
        f"| [{title}]({title.lower()}.md) | {', '.join(f'[`{name}`][cgd_deploy.{name}]' for name in listed)} |"
        for title, listed in found.items()
    ]
    head = ["# Python", "", "Import every name here from `cgd_deploy`.", "", "| page | names |", "|---|---|"]
    return "\n".join([*head, *rows, ""])


def _page(title: str) -> str:
    return f"{FOLDER}/{title.lower()}.md"


def _title(name: str) -> str:
    module = getattr(cgd_deploy, name).__module__
    for title, prefix in PAGES.items():
        if f"{module}.".startswith(f"{prefix}."):
            return title
    raise ValueError(f"{name} of {module} has no page in the reference; add its package to PAGES in {__file__}.")
