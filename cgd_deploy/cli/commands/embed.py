"""``cgd-deploy embed``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ..options import EngineOption, Json, Pictures, Streams, Strict, Threads

if TYPE_CHECKING:
    from ...datasets.left_out import LeftOut
    from ...pictures.images import ImageList
    from ...runtime.enginefile import EngineFile
    from ...search.compact import Compact
    from ...search.gallery import Index
    from ...search.graph import Graph

IndexOption = partial(typer.Option, rich_help_panel="Index")
RayOption = partial(typer.Option, rich_help_panel="Ray")


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    images: Pictures
    engine: EngineOption
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FILE", help="Index to write, .npy or .parquet. With --ray it is a .parquet folder."
        ),
    ]
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Pictures in a batch.",
            show_default="CPU: 8, or what --autotune found here; CUDA: the engine's largest",
        ),
    ] = None
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode large JPEG files smaller. Pixels differ by about one level.")
    ] = False
    decoder: Annotated[
        str, typer.Option(metavar="NAME", help="Decoder of JPEG files: pillow, or nvjpeg for an engine on CUDA.")
    ] = "pillow"
    threads: Threads = None
    streams: Streams = None
    strict: Strict = False
    as_json: Json = False

    descriptor_dtype: Annotated[
        str | None,
        IndexOption(
            metavar="TYPE",
            help="Type of the stored values: float32, float16, int8 or binary.",
            show_default="float32; with --update, as in the index",
        ),
    ] = None
    pca: Annotated[
        int | None, IndexOption(metavar="N", help="Store only the first N principal components of the descriptors.")
    ] = None
    paths: Annotated[
        str | None,
        IndexOption(
            metavar="RULE",
            help="Paths of the pictures in the index: relative (to the index) or absolute.",
            show_default="relative, or with --update as they are",
        ),
    ] = None

    update: Annotated[
        bool,
        IndexOption("--update", help="Embed only pictures that are new or have changed, and drop those that are gone."),
    ] = False
    ann: Annotated[
        bool, IndexOption("--ann", help="Also build a graph, with which search is fast and approximate.")
    ] = False

    ray: Annotated[
        bool, RayOption("--ray", help="Embed with Ray workers into a folder. A second run continues the first.")
    ] = False
    workers: Annotated[
        int | None,
        RayOption(
            min=1, metavar="N", help="Workers, each with an engine and --threads.", show_default="as many as fit"
        ),
    ] = None
    shard: Annotated[
        int | None, RayOption(min=1, metavar="N", help="Pictures in each Parquet file.", show_default="1024")
    ] = None
    ray_address: Annotated[
        str | None,
        RayOption(metavar="ADDRESS", help="Address of a cluster, or auto.", show_default="start Ray on this machine"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to embed, with the engine and the functions that hear of it.

    on_error   gets the number of a bad picture and its error; None: the first bad picture raises the error
    on_count   gets the number of pictures just embedded
    """

    options: EmbedOptions
    images: ImageList
    file: EngineFile
    on_error: Callable[[int, InputError], None] | None
    on_count: Callable[[int], None]


@dataclass(frozen=True)
class Embedded:
    """The form of the stored descriptors, and how many there are.

    counts   with Ray the numbers of shards; with --update how many pictures were added, changed, removed and kept
    facts    with --ann the recall of the graph
    """

    form: Compact
    pictures: int
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, float | None] = field(default_factory=dict)


def embed(options: EmbedOptions) -> None:
    """Embed pictures into an index of descriptors and paths."""
    from ...hardware.packages import check_runtime

    _check_ray(options)
    check_runtime()
    from ...datasets.left_out import LeftOut
    from ...pictures.images import read_images
    from ...runtime.cuda.nvjpeg import check_decoder
    from ...runtime.enginefile import read_engine
    from ...search.graph import import_usearch
    from ...search.index import check_index_path
    from ...search.paths import check_paths_are
    from ..terminal import counting, first_few, warn, warn_all

    check_index_path(options.out)
    if options.ann:
        import_usearch()
    if options.paths:
        check_paths_are(options.paths)
    check_decoder(options.decoder, options.fast_decode)
    images = read_images(options.images)
    warn_all(images.notes)
    file = read_engine(options.engine)
    if file.untuned:
        warn(file.untuned)
    left_out: list[LeftOut] = []
    with first_few("left out") as tell, counting("Embedding", len(images)) as on_count:

        def leave_out(number: int, error: InputError) -> None:
            left_out.append(LeftOut.of(images.path(number), error))
            tell(str(left_out[-1]), left_out[-1].reason)

        on_error = None if options.strict or len(images) == 1 else leave_out
        job = Job(options=_tuned(options, file), images=images, file=file, on_error=on_error, on_count=on_count)
        embedded = _embed_on_ray(job) if options.ray else _embed_here(job)
    _print(options, file, embedded, left_out)


def _check_ray(options: EmbedOptions) -> None:
    """Raise InputError if an option does not go together with --ray, or not without it."""
    for_ray = {"--workers": options.workers, "--shard": options.shard, "--ray-address": options.ray_address}
    if not options.ray:
        if given := [name for name, value in for_ray.items() if value is not None]:
            raise InputError(f"{given[0]} is for --ray; add --ray, or leave it out.")
        return
    for name, value in {"--update": options.update, "--ann": options.ann}.items():
        if value:
            raise InputError(f"{name} is not for --ray, which writes a folder of shards; leave one of them out.")
    if options.pca is not None:
        raise InputError("--pca needs every descriptor at once, and --ray has them in shards; leave one of them out.")
    if options.out.suffix != ".parquet":
        raise InputError(f"{options.out} does not end in .parquet, as a folder that --ray writes must; rename it.")
    if options.decoder != "pillow":
        raise InputError(
            f"--decoder {options.decoder} is not for --ray: its workers use pillow; leave one of them out."
        )


def _tuned(options: EmbedOptions, file: EngineFile) -> EmbedOptions:
    """Use the threads and streams that --autotune found fastest on this machine, unless the user gives some."""
    from ...runtime.tuning import setting_here

    tuned = setting_here(file.tunings, "throughput")
    if not tuned or options.threads or options.streams or options.workers:
        return options
    return replace(options, threads=tuned.threads, streams=tuned.streams)


def _form(options: EmbedOptions, older: Index | None) -> tuple[str, int | None]:
    """The type and the PCA to store: as the user says, else as in the older index, else float32 without a PCA."""
    dtype, pca = (older.compact.dtype, older.compact.pca) if older else ("float32", None)
    return options.descriptor_dtype or dtype, pca if options.pca is None else options.pca


def _embed_here(job: Job) -> Embedded:
    """Embed in this process and write an index, or update the index that is there."""
    from ...runtime.engine import open_engine
    from ...search.embedding import Reading, index_images
    from ...search.index import read_index, write_index
    from ...search.update import Updated, update_index, why_again
    from ..terminal import warn

    options = job.options
    reading = Reading(batch_size=options.batch, fast_decode=options.fast_decode, decoder=options.decoder)
    told = (job.on_error, job.on_count, warn)
    older = read_index(options.out, exact=True) if options.update and options.out.exists() else None
    dtype, pca = _form(options, older)
    paths_are = options.paths or (older.paths_are if older else None)
    with open_engine(job.file, threads=options.threads, streams=options.streams) as engine:
        if older and (again := why_again(older, engine, dtype, pca)):
            warn(f"{options.out}: every picture is embedded again, because {again}.")
            older = None
        if older:
            index, updated = older, update_index(older, engine, job.images, reading, *told)
        else:
            index = index_images(engine, job.images, reading, *told, descriptor_dtype=dtype, pca=pca)
            updated = Updated(added=len(index), changed=0, removed=0, kept=0)
    graph = _graph(index) if options.ann else None
    write_index(index, options.out, paths_are, graph)
    counts = asdict(updated) if options.update else {}
    return Embedded(index.compact, len(index), counts, {"graph_recall_at_10": graph.recall_at_10} if graph else {})


def _graph(index: Index) -> Graph:
    from ...search.graph import Graph
    from ..terminal import counting

    with counting("Building the graph", len(index)) as on_rows:
        return Graph.build(index.compact, index.stored, on_rows)


def _embed_on_ray(job: Job) -> Embedded:
    """Embed with Ray workers and write a folder of shards."""
    from ...search.compact import Compact
    from ...search.paths import RELATIVE
    from ...serving.scale import SHARD, RayOptions, embed_on_ray
    from ..terminal import first_few

    options = job.options
    dtype, _ = _form(options, None)
    settings = RayOptions(
        batch_size=options.batch,
        fast_decode=options.fast_decode,
        descriptor_dtype=dtype,
        paths_are=options.paths or RELATIVE,
        shard=options.shard or SHARD,
        workers=options.workers,
        threads=options.threads,
        streams=options.streams,
        address=options.ray_address,
    )
    with first_few("workers that died") as tell_killed:

        def on_killed(told: str) -> None:
            tell_killed(told, told)

        written = embed_on_ray(job.images, job.file, options.out, settings, job.on_error, job.on_count, on_killed)
    shards = {name: getattr(written, name) for name in ("shards", "resumed", "redone", "killed")}
    return Embedded(Compact(dtype, job.file.manifest.spec.dim), written.pictures, shards)


def _print(options: EmbedOptions, file: EngineFile, embedded: Embedded, left_out: list[LeftOut]) -> None:
    from ..terminal import print_result

    form = embedded.form
    facts = {
        "path": str(options.out),
        "pictures": embedded.pictures,
        "left_out": [picture._asdict() for picture in left_out],
        "space_id": file.manifest.spec.space_id,
        "descriptor_dtype": form.dtype,
        "pca": form.pca,
        "bytes_per_descriptor": form.bytes_per_descriptor,
        **embedded.counts,
        **embedded.facts,
    }
    kept = f"{form.length} values each as {form.dtype}, {form.bytes_per_descriptor} bytes a descriptor"
    counted = "".join(f", {number} {name}" for name, number in embedded.counts.items())
    counted += "".join(f", {name.replace('_', ' ')} {value}" for name, value in embedded.facts.items())
    text = f"{options.out}: {embedded.pictures} pictures, {kept}, {len(left_out)} left out{counted}"
    print_result(facts, text, options.as_json)
