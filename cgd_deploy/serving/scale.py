"""Bulk embedding on Ray Data: a pool of workers, each with an engine, which write one shard for each range of a list.

Ray starts workers, places them, gives them ranges and replaces dead ones. ``shards`` makes a run resumable and keeps
pictures from being lost or doubled; it needs no Ray.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import CgdError, InputError, not_installed
from ..files import sha256_file
from ..hardware.cpu import available_threads
from ..hardware.packages import package_version
from ..limits import Limits, limits, set_limits
from ..pictures.images import ImageList
from ..runtime.backends import default_device
from ..runtime.engine import Engine, open_engine
from ..runtime.enginefile import EngineFile
from ..search.compact import Compact
from ..search.embedding import Reading, embed_images
from ..search.paths import RELATIVE, check_paths_are
from ..search.shards import Run, Shard, Shards

SHARD = 1024
"""Pictures in a shard: a killed worker costs at most this many pictures. A multiple of the usual batches."""
TRIES = 3
"""How many workers may die over one shard. Without a limit, Ray would retry a file that crashes a decoder for ever."""
STAT_THREADS = 32
"""Threads that read sizes and times of picture files; a network file system answers many requests at once."""
QUEUE = 2
"""Ranges in a worker's queue: the current one and the next one. A longer queue would leave workers idle at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """How every worker embeds; the pictures come later, in ranges.

    images       an empty list with the root in which names start
    folder       the folder in which a relative root starts, None for an absolute root
    strict       stop at the first bad picture
    paths_are    see ``paths``
    limits       limits of the driver's process, which the workers adopt
    release      release of cgd-deploy, which every node must have
    """

    images: ImageList
    folder: str | None
    batch: int | None
    threads: int
    streams: int | None
    strict: bool
    paths_are: str
    limits: Limits
    release: str | None


@dataclass(frozen=True)
class Written:
    """The result of a run.

    pictures   number of pictures in all shards
    left_out   the reason for each picture that is in no shard
    shards     number of shards
    resumed    number of shards that this run kept from earlier runs
    redone     number of shards that this run wrote again: picture files changed, release 0.1.0 wrote the shard and
               recorded no state of the files, or this run stores paths in another way
    killed     number of workers that died over a shard, which another worker then wrote
    """

    pictures: int
    left_out: list[str]
    shards: int
    resumed: int
    redone: int
    killed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """How ``embed_on_ray`` embeds.

    batch_size   see ``Engine.embed_list``; None: each worker's engine chooses
    fast_decode  see ``Engine.embed_list``
    descriptor_dtype   how shards keep descriptors, see ``Compact``
    paths_are    "relative" to the folder of shards, or "absolute", see ``paths``
    shard        pictures in a shard
    workers      engines at the same time; None: as many as fit
    threads      CPU threads of each worker, which also decode; None: as many as leave room for ``workers``, or for one
                 worker on each node or GPU
    streams      see ``load``
    address      of a Ray cluster; "auto": the cluster of this machine; None: the Ray that this process is connected to,
                 or else a new Ray on this machine
    """

    batch_size: int | None = None
    fast_decode: bool = False
    descriptor_dtype: str = "float32"
    paths_are: str = RELATIVE
    shard: int = SHARD
    workers: int | None = None
    threads: int | None = None
    streams: int | None = None
    address: str | None = None


def embed_on_ray(
    images: ImageList,
    file: EngineFile,
    out: Path,
    options: RayOptions | None = None,
    on_error: Callable[[int, InputError], None] | None = None,
    on_pictures: Callable[[int], None] | None = None,
    on_killed: Callable[[str], None] | None = None,
) -> Written:
    """Embed a list into the folder ``out``, see ``shards``; only shards that are missing or out of date are computed.

    on_error     called for each picture that is left out, also by earlier runs; None: the first such picture raises
    on_pictures  called with how many pictures were embedded since the last call; shards of earlier runs come first
    on_killed    called with a sentence when a worker died

    Pictures and ``out`` lie where every node finds them under the same path; the engine travels by itself.
    Raises InputError for options that do not fit together, MissingDependency without Ray.
    """
    _import_ray()
    options = options or RayOptions()
    check_paths_are(options.paths_are)
    shards = Shards(out, _run(images, file, options))
    shards.check()

    def report(part: range, left_out: Mapping[int, str]) -> None:
        for number, reason in left_out.items():
            if on_error is None:
                raise InputError(reason)
            on_error(number, InputError(reason))
        if on_pictures:
            on_pictures(len(part) - len(left_out))

    before = shards.done()
    kept = _up_to_date(before, images, options.paths_are)
    for part in kept:
        report(part, before[part].left_out)
    missing = [part for part in shards.run.ranges if part not in kept]
    killed = 0
    with closing(_compute(missing, images, file, shards, options, strict=on_error is None)) as computed:
        for part, tries, left_out in computed:
            killed += tries - 1
            if tries > 1 and on_killed:
                on_killed(f"a worker died over pictures {part[0]} to {part[-1]}; another one has done them.")
            report(part, left_out)
    done = shards.done()
    shards.check_complete(done)
    shards.end()
    reasons = [reason for shard in done.values() for reason in shard.left_out.values()]
    if len(reasons) == len(images):
        raise InputError(f"none of the {len(images)} pictures could be read ({reasons[0].rstrip('.')}); list others.")
    return Written(len(images) - len(reasons), reasons, len(done), len(kept), len(before) - len(kept), killed)


def _compute(
    missing: Sequence[range], images: ImageList, file: EngineFile, shards: Shards, options: RayOptions, strict: bool
) -> Generator[tuple[range, int, dict[int, str]], None, None]:
    """Write the missing shards on Ray; yields as ``_results`` does. Without missing shards no Ray starts."""
    if not missing:
        return
    with _connected(options.address) as ray:
        may_grow = options.address is not None
        workers, threads = _places(ray.nodes(), options.workers, options.threads, _on_gpu(file), may_grow)
        shards.begin()
        job = _job(images, options, threads, strict)
        yield from _results(ray, images, missing, file, shards, job, workers)


class Worker:
    """An engine in a Ray process: each call embeds one range and writes its shard."""

    def __init__(self, file: Any, shards: Shards, job: Job) -> None:
        import ray

        self._shards, self._job = shards, job
        self._engine: Engine | CgdError
        try:
            self._engine = _open(ray.get(file), job)
        except CgdError as error:  # raised for the first range: if we raised it here, Ray would start another worker
            self._engine = error

    def __call__(self, rows: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        (task,) = map(json.loads, rows["task"])
        part = range(task["first"], task["first"] + len(task["names"]))
        told: dict[str, Any] = {"first": part[0], "last": part[-1], "tries": 1, "left_out": [], "error": None}
        try:
            told["tries"] = self._shards.begin_shard(part)
            told["left_out"] = sorted(self._embed(part, task, told["tries"]).items())
        except CgdError as error:
            told.update(error=type(error).__name__, message=str(error))
        return {"told": [json.dumps(told)]}

    def _embed(self, part: range, task: Mapping[str, Any], tries: int) -> dict[int, str]:
        """Write the shard; returns list number -> reason for each picture left out."""
        if isinstance(self._engine, CgdError):
            raise self._engine
        if tries > TRIES:
            raise InputError(
                f"{TRIES} workers died over pictures {part[0]} to {part[-1]}; look there for a file that crashes its "
                "decoder, or use fewer workers if memory runs out."
            )
        run, job = self._shards.run, self._job
        boxes = tuple(tuple(box) for box in task["boxes"]) if task["boxes"] else None
        images = replace(job.images, names=tuple(task["names"]), boxes=boxes)
        files_sha256 = images.files_sha256  # before reading, so that the next run notices a change meanwhile
        left_out: dict[int, str] = {}

        def leave_out(index: int, error: InputError) -> None:
            left_out[part[index]] = str(error)

        on_error = None if job.strict else leave_out
        reading = Reading(batch_size=job.batch, fast_decode=run.fast_decode)
        kept, descriptors = embed_images(self._engine, images, reading, on_error)
        stored = Compact(run.descriptor_dtype, run.dim).store(descriptors)
        shard = Shard(
            left_out=left_out,
            files_sha256=files_sha256,
            paths_are=job.paths_are,
            statement=self._engine.manifest.statement,
        )
        self._shards.write(part, stored, [str(images.path(index)) for index in kept], shard)
        return left_out


def _open(file: EngineFile, job: Job) -> Engine:
    here = package_version("cgd-deploy")
    if here != job.release:
        raise InputError(f"node {os.uname().nodename} has cgd-deploy {here}, not {job.release}; install one release.")
    set_limits(**asdict(job.limits))
    if job.folder:
        try:
            os.chdir(job.folder)  # the process has no other worker
        except OSError as error:
            raise InputError(
                f"node {os.uname().nodename} has no {job.folder}, where {job.images.root} starts ({error.strerror}); "
                "pass an absolute path of the pictures that every node has."
            ) from error
    return open_engine(file, threads=job.threads, streams=job.streams)


def _run(images: ImageList, file: EngineFile, options: RayOptions) -> Run:
    spec = file.manifest.spec
    return Run(
        pictures=len(images),
        shard=options.shard,
        root=str(images.root),
        list_sha256=images.sha256,
        engine_sha256=sha256_file(file.path),
        space_id=spec.space_id,
        precision=file.manifest.precision.value,
        dim=spec.dim,
        descriptor_dtype=Compact(options.descriptor_dtype, spec.dim).dtype,
        fast_decode=options.fast_decode,
    )


def _up_to_date(there: Mapping[range, Shard], images: ImageList, paths_are: str) -> list[range]:
    """The shards whose picture files have not changed since, and which store paths as ``paths_are`` says."""
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        now = pool.map(lambda part: images.subset(part).files_sha256, there)
        return [
            part
            for (part, shard), files_sha256 in zip(there.items(), now, strict=True)
            if (shard.files_sha256, shard.paths_are) == (files_sha256, paths_are)
        ]


def _job(images: ImageList, options: RayOptions, threads: int, strict: bool) -> Job:
    return Job(
        images=replace(images, names=(), classes=None, boxes=None),
        folder=None if images.root.is_absolute() else os.getcwd(),
        batch=options.batch_size,
        threads=threads,
        streams=options.streams,
        strict=strict,
        paths_are=options.paths_are,
        limits=limits(),
        release=package_version("cgd-deploy"),
    )


def _on_gpu(file: EngineFile) -> bool:
    return default_device(file.manifest.backend, file.manifest.precision) == "cuda"


def _results(
    ray: Any, images: ImageList, missing: Sequence[range], file: EngineFile, shards: Shards, job: Job, workers: int
) -> Iterator[tuple[range, int, dict[int, str]]]:
    """Yield (range, tries, left out) of each range as soon as it is done; raises the error of a worker."""

    def task(part: range) -> dict[str, str]:
        boxes = images.boxes[part.start : part.stop] if images.boxes else None
        return {"task": json.dumps({"first": part[0], "names": images.names[part.start : part.stop], "boxes": boxes})}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = ray.data.from_items([task(part) for part in missing], override_num_blocks=len(missing)).map_batches(
        Worker,
        batch_size=1,
        fn_constructor_args=(ray.put(file), replace(shards, folder=shards.folder.absolute()), job),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing)), max_tasks_in_flight_per_actor=QUEUE),
        num_cpus=job.threads,
        num_gpus=1 if _on_gpu(file) else 0,
    )
    for row in rows.iter_rows():
        told = json.loads(row["told"])
        if told["error"]:
            raise getattr(errors, told["error"])(told["message"])
        yield range(told["first"], told["last"] + 1), told["tries"], dict(told["left_out"])


def _places(
    nodes: Sequence[Mapping[str, Any]], workers: int | None, threads: int | None, on_gpu: bool, may_grow: bool
) -> tuple[int, int]:
    """The number of workers and the threads of each; None for either: as many as Ray's nodes have room for.

    Raises InputError where Ray would wait for ever: if a worker is larger than every node, or if the workers do not fit
    on a Ray that cannot grow.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    cores = [int(resource.get("CPU", 0)) for resource in resources]
    gpus = [int(resource.get("GPU", 0)) for resource in resources]

    def room(each: int) -> int:
        return sum(min(core // each, gpu if on_gpu else core) for core, gpu in zip(cores, gpus, strict=True))

    if threads is None:
        wanted = workers or (sum(gpus) if on_gpu else sum(core > 0 for core in cores))
        threads = next((each for each in range(max(cores), 0, -1) if room(each) >= wanted), 1)
    if not room(threads):
        needs = f"{threads} threads{' and a GPU' if on_gpu else ''}"
        raise InputError(
            f"no node of this Ray has room for an engine with {needs}; the largest has {max(cores)} cores."
        )
    if workers and workers > room(threads) and not may_grow:
        raise InputError(f"{workers} workers of {threads} threads do not fit on {sum(cores)} cores; ask for fewer.")
    return workers or room(threads), threads


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray's module, connected to the cluster at ``address``, to its present cluster, or to a new Ray on this machine.

    Ray's output goes to stderr. A Ray that we start ourselves is silent; we report what matters.
    """
    ray = _import_ray()
    if ray.is_initialized():
        if address:
            raise InputError(f"this process is already connected to Ray; leave {address} out.")
        yield ray
        return
    own = {} if address else {"num_cpus": available_threads(), "include_dashboard": False}
    with redirect_stdout(sys.stderr if address else io.StringIO()):
        try:
            with _without_stderr():
                ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise InputError(
                f"Ray does not start at {address or 'this machine'} ({reason}); start a cluster with `ray start "
                "--head`, or leave the address out."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence Ray's C++ part: it warns of every actor that may restart, and it also reports a changed log level."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise not_installed(error, "ray") from error
    return ray
