"""Compact forms of descriptors: fewer bytes a value, fewer values. Takes and gives arrays; knows no file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..runtime.descriptors import Descriptors
from .retrieval import CHUNK

Stored = NDArray[Any]
"""Float32, float16 or int8 [N, L], or uint8 [N, ceil(L / 8)] where each value is one bit."""

TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, eq=False)
class Compact:
    """The form in which a gallery keeps descriptors of ``dim`` values; ``fit`` makes one for a gallery.

    dtype        one of DTYPES
    projection   None, or the PCA as float32 [1 + L, dim]: the mean to subtract, then L components

    Only the gallery is rounded. Queries are projected and stay float32, so only one side of a similarity has a rounding
    error (asymmetric distances, Gordo et al. 2014).
    """

    dtype: str
    dim: int
    projection: Descriptors | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _CODES:
            raise InputError(f"descriptor dtype {self.dtype!r} is unknown; expected one of {', '.join(DTYPES)}.")

    @property
    def pca(self) -> int | None:
        """Number of PCA components, None without a PCA."""
        return None if self.projection is None else len(self.projection) - 1

    @property
    def length(self) -> int:
        """L, the number of values of a stored descriptor."""
        return self.dim if self.pca is None else self.pca

    @property
    def facts(self) -> dict[str, Any]:
        """The fields that an index stores about its form."""
        return {"descriptor_dtype": self.dtype, "dim": self.dim, "pca": self.pca}

    @property
    def bytes_per_descriptor(self) -> int:
        return -(-self.length * _CODES[self.dtype].bits // 8)

    def project(self, descriptors: Descriptors) -> Descriptors:
        """Unit float32 [N, dim] -> unit float32 [N, L], not rounded; the mean descriptor becomes zeros.

        Raises InputError if the descriptors do not have ``dim`` values.
        """
        if self.projection is None:
            return descriptors
        if descriptors.shape[1] != self.dim:
            raise InputError(f"queries have {descriptors.shape[1]} values, the PCA takes {self.dim}; use one model.")
        mean, components = self.projection[0], self.projection[1:]
        return _unit((descriptors - mean) @ components.T)

    def store(self, descriptors: Descriptors) -> Stored:
        """Unit float32 [N, dim] -> the stored array."""
        return self.encode(self.project(descriptors))

    def encode(self, projected: Descriptors) -> Stored:
        """Unit float32 [N, L] -> the stored array."""
        return _CODES[self.dtype].write(projected)

    def restore(self, stored: Stored) -> Descriptors:
        """The stored array -> unit float32 [N, L]. Rows of zeros stay zeros, except in binary, which has no zero."""
        return _CODES[self.dtype].read(stored, self.length)

    def check(self, stored: Stored) -> None:
        """Raise InputError unless the dtype and width of an array are those that ``store`` gives."""
        dtype = np.dtype(_CODES[self.dtype].stored)
        width = self.bytes_per_descriptor // dtype.itemsize
        if stored.dtype != dtype or stored.shape[1:] != (width,):
            raise InputError(
                f"stored descriptors are {stored.dtype} {list(stored.shape)}, but {self.length} values as {self.dtype} "
                f"are {dtype} [N, {width}]; make the index again."
            )


def fit(descriptors: Descriptors, dtype: str = "float32", pca: int | None = None) -> Compact:
    """The compact form for a gallery of unit descriptors float32 [N, D]; raises InputError as ``check_form`` does."""
    count, dim = descriptors.shape
    check_form(dtype, pca, dim, count)
    return Compact(dtype, dim, None if pca is None else _principal(descriptors, pca))


def check_form(dtype: str, pca: int | None, dim: int, pictures: int) -> None:
    """Raise InputError for an unknown dtype, or if ``pictures`` descriptors of ``dim`` values have fewer components."""
    Compact(dtype, dim)
    most = min(dim, pictures - 1)
    if pca is not None and not 1 <= pca <= most:
        advice = f"pass 1 to {most}" if most > 0 else "leave it out"
        raise InputError(f"pca={pca} cannot be fitted to a gallery of {pictures} x {dim} values; {advice}.")


def _principal(descriptors: Descriptors, count: int) -> Descriptors:
    """[1 + count, D]: the mean and the leading eigenvectors of the covariance (principal components, Pearson 1901).

    The sign of an eigenvector is arbitrary. We make its entry of largest magnitude positive.
    """
    mean = descriptors.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(descriptors), CHUNK):
        centred = descriptors[start : start + CHUNK] - mean
        scatter += centred.T @ centred
    _, vectors = np.linalg.eigh(scatter)  # ascending
    components = vectors[:, ::-1][:, :count].T
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return np.vstack([mean, components * np.sign(largest)]).astype(np.float32)


def check_finite(descriptors: Descriptors, name: Callable[[int], str]) -> None:
    """Raise InputError if one of the descriptors [N, D] holds NaN or an infinite value; ``name`` gives its name."""
    finite = np.isfinite(descriptors).all(axis=1)
    if not finite.all():
        raise InputError(
            f"the descriptor of {name(int(finite.argmin()))} is not finite; "
            "test its engine with `cgd-deploy inspect --self-test`."
        )


def _unit(values: Descriptors) -> Descriptors:
    """Scale rows to unit length in place; a row of zeros stays zeros."""
    values /= np.maximum(np.sqrt(np.einsum("nd,nd->n", values, values)), TINY)[:, None]
    return values


def _to_int8(values: Descriptors) -> Stored:
    """Scale each row so that its largest magnitude is 127. The scale is not stored: cosines do not depend on it."""
    largest = np.maximum(np.abs(values).max(axis=1, keepdims=True), TINY)
    return np.rint(values / largest * 127).astype(np.int8)


def _from_signs(stored: Stored, length: int) -> Descriptors:
    one = np.float32(length**-0.5)
    values = np.unpackbits(stored, axis=1, count=length).astype(np.float32)
    values *= 2 * one
    values -= one
    return values


class _Code(NamedTuple):
    """Writes values [N, L] to an array of dtype ``stored`` with ``bits`` bits a value, and reads unit float32."""

    stored: type
    bits: int
    write: Callable[[Descriptors], Stored]
    read: Callable[[Stored, int], Descriptors]


_CODES = {
    "float32": _Code(np.float32, 32, lambda values: values, lambda stored, _: stored),
    "float16": _Code(
        np.float16, 16, lambda values: values.astype(np.float16), lambda stored, _: _unit(stored.astype(np.float32))
    ),
    "int8": _Code(np.int8, 8, _to_int8, lambda stored, _: _unit(stored.astype(np.float32))),
    "binary": _Code(np.uint8, 1, lambda values: np.packbits(values >= 0, axis=1), _from_signs),
}
DTYPES = tuple(_CODES)
