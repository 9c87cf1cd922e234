"""Decodes JPEG files on the GPU with NVIDIA's nvJPEG, through the library nvImageCodec.

nvJPEG only decodes. Pillow still reads every header, and ``preprocess`` still crops, resizes and checks limits. Files
that nvJPEG does not take or cannot decode go through ``preprocess`` alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import EngineError, InputError, MissingDependency, in_one_line, install_line
from ...files import check_file
from ...formats import readable
from ...hardware.cpu import available_threads
from ...limits import limits
from ...pictures.images import ImageList
from ...pictures.preprocess import Attempt, ahead, check_sides, crop, fit, gathered, preprocess
from ...pictures.rgb import upright_turn
from ...spec import ModelSpec
from .driver import ORDINAL

DECODERS = ("pillow", "nvjpeg")
GROUP, GROUP_PIXELS = 64, 64 << 20
"""The most pictures in a call of nvJPEG, and the pixels after which a call takes no further picture: 192 MiB of RGB."""
OPTIONS = ":fancy_upsampling=1"
"""Interpolate chroma as libjpeg does; without it pixels differ from Pillow's by 0.4 to 1.0 levels of 255 on average."""
END_OF_IMAGE = b"\xff\xd9"
YCBCR = [1, 2, 3]
"""Component numbers that libjpeg reads as YCbCr, unless a marker in the file says otherwise."""
VERBOSITY = "PYNVIMGCODEC_VERBOSITY"


def check_decoder(decoder: str, fast_decode: bool) -> None:
    """Raise InputError for an unknown decoder, and for nvJPEG with ``fast_decode``, which it does not have."""
    if decoder not in DECODERS:
        raise InputError(f"decoder={decoder!r:.60} is unknown; expected one of {', '.join(DECODERS)}.")
    if fast_decode and decoder != "pillow":
        raise InputError(f"only pillow has a fast decode, and the decoder is {decoder}; leave one of them out.")


class NvJpeg:
    """nvJPEG on the GPU that engines run on. A context manager; one thread at a time may decode.

    threads   CPU threads that the library may use; small files are partly decoded on the CPU

    Raises MissingDependency without nvImageCodec, EngineError if nvJPEG does not decode on this machine.
    """

    def __init__(self, threads: int) -> None:
        codec = import_nvimgcodec()
        kinds = codec.BackendKind
        on_gpu = [codec.Backend(kind) for kind in (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)]
        settings = {"device_id": ORDINAL, "max_num_cpu_threads": threads, "options": OPTIONS}
        try:
            self._decoder = codec.Decoder(backends=on_gpu, **settings)
        except RuntimeError as error:
            raise EngineError(_no_decoder(in_one_line(error))) from error
        self._params = codec.DecodeParams(apply_exif_orientation=False)  # the caller turns the picture, as for Pillow
        [trial] = self.decode([_small_jpeg()])
        if trial is None:
            self.close()
            raise EngineError(_no_decoder("it gives no pixels for a small JPEG"))

    def decode(self, files: Sequence[bytes]) -> list[NDArray[np.uint8] | None]:
        """The pixels of JPEG files in host memory, not turned: uint8 RGB [H, W, 3], None for a file that fails."""
        images = self._decoder.decode(list(files), params=self._params) if files else []
        return [None if image is None else np.asarray(image.cpu()) for image in images]

    def close(self) -> None:
        """Free the decoder and its memory on the GPU."""
        self._decoder.__exit__(None, None, None)

    def __enter__(self) -> NvJpeg:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def import_nvimgcodec() -> Any:
    """The module ``nvidia.nvimgcodec``, imported so that it writes nothing about single files to stderr.

    Raises MissingDependency without the module.
    """
    try:
        with _quiet():
            from nvidia import nvimgcodec
    except ImportError as error:
        raise MissingDependency(f"nvImageCodec is not installed; run `{install_line('nvjpeg')}`.") from error
    return nvimgcodec


@contextmanager
def _quiet() -> Iterator[None]:
    """Set the variable by which the library, when imported, chooses its messages. A value of the user stays."""
    if VERBOSITY in os.environ:
        yield
        return
    os.environ[VERBOSITY] = "0"
    try:
        yield
    finally:
        del os.environ[VERBOSITY]


def _no_decoder(reason: str) -> str:
    lines = f"run `{install_line('nvjpeg')}` and look at `nvidia-smi`"
    return f"nvJPEG does not decode on this machine ({reason}); {lines}, or decode with pillow."


def _small_jpeg() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "JPEG")
    return file.getvalue()


class JpegFile(NamedTuple):
    """A file that nvJPEG takes: its bytes, its number of pixels, and the turn that makes it upright."""

    data: bytes
    pixels: int
    turn: Image.Transpose | None


def read_jpeg(path: Path) -> JpegFile | None:
    """Read a file for which nvJPEG and Pillow give the same pixels: a complete JPEG in 8-bit YCbCr or grey.

    Returns None for every other file. ``preprocess`` then reads the file, or says what is wrong with it.
    """
    try:
        check_file(path, "picture_bytes")
        data = path.read_bytes()
        file = BytesIO(data)
        with Image.open(file, formats=readable(limits().formats)) as opened:
            start = file.tell()  # Pillow has read up to the first scan
            check_sides(opened, str(path))
            if not _is_plain(opened) or data.find(END_OF_IMAGE, start) < 0:
                return None
            return JpegFile(data, opened.width * opened.height, upright_turn(opened))
    except Exception:  # Pillow raises a dozen unrelated types for damaged files
        return None


def _is_plain(opened: Any) -> bool:
    """Whether a file is a JPEG in grey or YCbCr. nvJPEG would read a JPEG in RGB as YCbCr."""
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB"):
        return False
    numbers = [component[0] for component in opened.layer]
    return opened.mode == "L" or (numbers == YCBCR and opened.info.get("adobe_transform", 1) == 1)


def nvjpeg_batches(
    images: ImageList,
    spec: ModelSpec,
    batch_size: int,
    workers: int | None = None,
    on_error: Callable[[int, InputError], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Generator[tuple[list[int], NDArray[np.uint8]], None, None]:
    """``preprocess.batches``, but nvJPEG decodes JPEG files.

    workers   threads that read files, and as many threads that resize; None: one for each core this process may use
    on_note   called at the end with one sentence that says how many pictures Pillow decoded, if any; None:
              ``warnings.warn``

    Up to three groups of decoded pictures wait in host memory, 192 MiB and one picture each, and two pictures for each
    worker. Raises the errors of ``NvJpeg`` and of ``batches``.
    """
    attempts = _attempts(images, spec, available_threads() if workers is None else workers, on_note or _warn)
    return gathered(attempts, batch_size, on_error)


def _warn(note: str) -> None:
    warnings.warn(note, stacklevel=2)


Read = tuple[int, JpegFile | None]
"""Index of a picture in the list, and its file if nvJPEG takes it."""
Decoded = tuple[int, JpegFile | None, NDArray[np.uint8] | None]
"""``Read``, and the pixels from nvJPEG."""


def _attempts(
    images: ImageList, spec: ModelSpec, workers: int, on_note: Callable[[str], None]
) -> Generator[Attempt, None, None]:
    """Threads read files, one thread decodes them in groups, and threads turn, crop and resize, in list order."""
    others: list[int] = []
    failed: list[int] = []

    def read(index: int) -> Read:
        return index, read_jpeg(images.path(index))

    def decode(group: list[Read]) -> list[Decoded]:
        found = iter(nvjpeg.decode([file.data for _, file in group if file]))
        return [(index, file, next(found) if file else None) for index, file in group]

    def finish(decoded: Decoded) -> Attempt:
        index, file, array = decoded
        path, box = images.path(index), images.box(index)
        try:
            if file is not None and array is not None:
                return _model_input(array, file, spec, box, str(path))
            pixels = preprocess(path, spec, box)
        except InputError as error:
            return error
        (failed if file else others).append(index)
        return pixels

    with ExitStack() as stack:
        nvjpeg = stack.enter_context(NvJpeg(workers))
        files = stack.enter_context(closing(ahead(read, range(len(images)), workers, depth=2 * workers)))
        groups = stack.enter_context(closing(ahead(decode, _groups(files), 1, depth=2)))
        yield from stack.enter_context(closing(ahead(finish, chain.from_iterable(groups), workers, depth=2 * workers)))
    if others or failed:
        on_note(_note(len(images), len(others), len(failed)))


def _groups(files: Iterable[Read]) -> Iterator[list[Read]]:
    group: list[Read] = []
    pixels = 0
    for index, file in files:
        group.append((index, file))
        pixels += file.pixels if file else 0
        if len(group) == GROUP or pixels >= GROUP_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def _model_input(array: NDArray[np.uint8], file: JpegFile, spec: ModelSpec, box: Any, name: str) -> NDArray[np.uint8]:
    image = Image.fromarray(array)
    if file.turn is not None:
        image = image.transpose(file.turn)
    return np.asarray(fit(crop(image, box, name), spec.rule, spec.input_size, name))


def _note(pictures: int, others: int, failed: int) -> str:
    counts = {"in other formats than JPEG in YCbCr or grey": others, "at which nvJPEG failed": failed}
    told = " and ".join(f"{count:,} {which}" for which, count in counts.items() if count)
    return f"Pillow decoded {others + failed:,} of {pictures:,} pictures: {told}."
