"""Docstrings become Markdown: aligned columns are tables, examples are code, names are links."""

from __future__ import annotations

import inspect
import re

import pytest

pytest.importorskip("griffe", reason="mkdocstrings is not installed: pip install -e '.[docs]'")

import api_pages
import cgd_deploy
import docstrings

DOCSTRING = """\
Describe pictures.

images        uint8 [N, H, W, 3], or
              paths
mean, std     a|b
Returns unit descriptors.
Raises InputError for
pictures that cannot be used.

Example:

    with load("a.cgd") as engine:
        engine.embed([])

    print("done")

See ``load`` and ``close`` and ``elsewhere``."""

MARKDOWN = """\
Describe pictures.


| name | meaning |
|---|---|
| `images` | uint8 [N, H, W, 3], or paths |
| `mean`, `std` | a\\|b |

Returns unit descriptors.

Raises [`InputError`][cgd_deploy.InputError] for
pictures that cannot be used.

**Example**

```python
with load("a.cgd") as engine:
    engine.embed([])

print("done")
```

See [`load`][cgd_deploy.load] and [`close`][cgd_deploy.Engine.close] and `elsewhere`."""


def test_a_docstring_becomes_markdown():
    assert docstrings.markdown(DOCSTRING, api_pages.anchors(), "Engine") == MARKDOWN


def test_a_class_does_not_link_to_itself():
    anchors = {"Engine": "cgd_deploy.Engine"}
    assert docstrings.markdown("An Engine, or ``Engine``.", anchors, "Engine") == "An Engine, or `Engine`."
    assert docstrings.markdown("An Engine.", anchors) == "An [`Engine`][cgd_deploy.Engine]."


@pytest.mark.parametrize("name", sorted(api_pages.anchors()))
def test_no_aligned_column_is_left_outside_of_tables(name):
    owner, _, member = name.partition(".")
    described = getattr(cgd_deploy, owner)
    text = docstrings.markdown(inspect.getdoc(getattr(described, member) if member else described), {})
    prose = re.sub(r"```python\n.*?\n```", "", text, flags=re.DOTALL)
    assert not re.search(r"^\w[\w, ]* {2,}\S", prose, re.MULTILINE) and "``" not in prose, prose
