"""Every public name has its place in the Python reference."""

from __future__ import annotations

import re

import pytest

import api_pages
import cgd_deploy


def test_every_public_name_is_described_once_and_listed_in_the_overview():
    pages = api_pages.pages()
    described = re.findall(r"^::: cgd_deploy\.(\w+)$", "\n".join(pages.values()), re.MULTILINE)
    assert sorted(described) == cgd_deploy.__all__
    assert all(f"[`{name}`][cgd_deploy.{name}]" in pages["reference/index.md"] for name in cgd_deploy.__all__)


def test_names_are_grouped_by_their_module_and_functions_come_first():
    names = api_pages.names()
    assert names["Engines"] == ["load", "Batching", "Engine", "Stats"]
    assert {"InputError", "Overloaded"} <= set(names["Errors"]) and "ModelSpec" in names["Models"]


def test_a_name_without_a_page_is_an_error(monkeypatch):
    monkeypatch.delitem(api_pages.PAGES, "Limits")
    with pytest.raises(ValueError, match=r"Limits|set_limits of cgd_deploy.limits has no page"):
        api_pages.pages()


def test_the_page_of_errors_shows_their_tree():
    assert "├── InputError" in api_pages.pages()["reference/errors.md"]


def test_members_have_anchors():
    anchors = api_pages.anchors()
    assert anchors["Engine.embed"] == "cgd_deploy.Engine.embed" and anchors["load"] == "cgd_deploy.load"
    assert {"Index.descriptors", "ModelSpec.from_dict", "Precision.in_graph"} <= set(anchors)
    assert not any("._" in name for name in anchors)
