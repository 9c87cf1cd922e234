"""ModelSpec: what it refuses, and that nothing is lost or guessed on the way through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest

from cgd_deploy.errors import SpecError
from cgd_deploy.spec import ModelSpec

SPEC = ModelSpec(backbone="resnet50", descriptors="SG")

BAD = {
    "descriptors": ["", "X", "SS", "sg", "SMGX", ("S", "G")],
    "backbone": ["a" * 61, 5, None],
    "no_downsample": [4],
    "space_id": [None, 17],
    "dim": [0, -2, 1535, 1536.0, "1536", True, 1 << 17],
    "gem_p": [0, -1.0, math.inf, math.nan, "3"],
    "gem_eps": [-1e-6, 1, math.nan, None, True],
    "input_size": [(224,), (True, 224), (224, 224, 3), (31, 224), (224, 4097), (224.0, 224)],
    "resize": ["opencv", ""],
    "color": ["BGR", "rgb"],
    "mean": [(0.5, 0.5), (math.nan, 0.5, 0.5), (math.inf, 0.5, 0.5), ("a", "b", "c")],
    "std": [(0.2, 0.2), (0.2, 0.0, 0.2), (0.2, -0.1, 0.2), (math.nan, 0.2, 0.2)],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_by_a_sentence_with_field_and_value(field, value):
    with pytest.raises(SpecError) as caught:
        ModelSpec(**{**SPEC.to_dict(), field: value})
    message = str(caught.value)
    assert f"{field}={value!r:.60}" in message
    assert "must be" in message or "must lie" in message or "is unknown" in message
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("field", ["gem_p", "mean", "std"])
def test_a_number_that_no_float_holds_is_refused_briefly(field):
    huge = 10**400 if field == "gem_p" else (10**400, 1, 1)
    with pytest.raises(SpecError, match=rf"^{field}=\(?10{{50,}} must be"):
        ModelSpec(**{**SPEC.to_dict(), field: huge})


@pytest.mark.parametrize("field", ["mean", "std", "input_size"])
def test_a_value_of_the_wrong_type_in_a_file_is_refused(field):
    with pytest.raises(SpecError, match="wrong type"):
        ModelSpec.from_dict({**SPEC.to_dict(), field: None})


def test_json_round_trip_keeps_every_field():
    spec = ModelSpec(
        backbone="resnet18",
        descriptors="GMS",
        dim=96,
        no_downsample="none",
        gem_p=2.718281828459045,
        gem_eps=1e-7,
        input_size=(96, 64),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        space_id="0123456789abcdef",
    )
    untouched = [f.name for f in fields(spec) if getattr(spec, f.name) == f.default]
    assert untouched == ["resize", "color"]  # these have one value only
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_order_of_descriptors_is_kept():
    sg, gs = (ModelSpec(backbone="resnet50", descriptors=letters) for letters in ("SG", "GS"))
    assert sg.branch_p == (1.0, 3.0)
    assert gs.branch_p == (3.0, 1.0)
    assert sg != gs
    assert ModelSpec(backbone="resnet50", descriptors="MGS", gem_p=2.5).branch_p == (math.inf, 2.5, 1.0)


@pytest.mark.parametrize("field", [field.name for field in fields(ModelSpec)])
def test_a_missing_field_is_refused_even_if_it_has_a_default(field):
    data = SPEC.to_dict()
    del data[field]
    with pytest.raises(SpecError, match=f"lacks {field};"):
        ModelSpec.from_dict(data)


def test_unknown_fields_are_refused():
    with pytest.raises(SpecError, match="unknown fields 'attention', 'layers';"):
        ModelSpec.from_dict({**SPEC.to_dict(), "layers": 3, "attention": True})


def test_an_unknown_field_of_two_lines_is_told_in_one():
    with pytest.raises(SpecError, match=r"unknown fields 'a\\nb';"):
        ModelSpec.from_dict({**SPEC.to_dict(), "a\nb": 1})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"resnet50"', "null", "[" * 100_000])
def test_text_that_is_no_table_is_refused(text):
    with pytest.raises(SpecError, match=r"not JSON|must be a table"):
        ModelSpec.from_json(text)


def test_a_spec_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        SPEC.dim = 512  # type: ignore[misc]
