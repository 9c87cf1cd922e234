"""Damaged files by the hundred: every reader gives a result or one sentence. fuzz.py does the same for as long as one
likes."""

from __future__ import annotations

import warnings

import pytest
from fuzz_targets import TARGETS, obeys, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = {"onnx": 60, "image": 150}
"""Those that take longer, or call more code; 100 for the others."""
TOKENS = (b"\xff" * 4, b"\0" * 4, b"NaN", b"1e999", b"-1", b"[" * 2000, b'"', b"null", b"{}", b"true", b"../../", b"/")
TOKENS += (b"\t", b"\r\n", b"9" * 30, b"9" * 5000, b"\xed\xa0\x80", b"PK\5\6", b"\x7f\xff\xff\xff", b", ")


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A whole file with up to four places cut out, overwritten or added to."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.sampled_from((0, 1, 2, 4, 16, len(data))))
        data[start:end] = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8)))
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes_give_a_result_or_one_sentence(target, tmp_path):
    whole = seeds(target, tmp_path)
    for data in whole:
        TARGETS[target](data, tmp_path)  # what is whole is read

    @settings(
        max_examples=EXAMPLES.get(target, 100),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(whole))
    def law(data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # as the command line does
            obeys(target, data, tmp_path)

    law()
