"""Commands that use engines, or tell what they and this machine are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import is_zipfile

import typer

from ...errors import GateError, InputError
from .options import ARTIFACTS, Autotune, Json, Streams, Strict, Threads, good_pictures, tell

if TYPE_CHECKING:
    from ...datasets.left_out import LeftOut

PicturesArgument = partial(
    typer.Argument, metavar="PICTURES", help="Folders, lists (LIST.tsv, .csv or .txt), glob patterns or pictures."
)
RayOption = partial(typer.Option, rich_help_panel="Options for --ray")


def bench(
    engines: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ENGINE", help="The .cgd engines to measure.", show_default="those in artifacts/"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURES",
            help="Test pictures: one folder per class, or a LIST.tsv.",
            show_default="the checkpoint's test pictures",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Checkpoint or FP32 engine to compare with.", show_default="the engine's checkpoint"
        ),
    ] = None,
    batch: Annotated[
        list[int], typer.Option(min=1, metavar="N", help="Batch size to time; may be repeated.", show_default="1 and 8")
    ] = [1, 8],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0, metavar="S", help="How long to time each batch size.")] = 20.0,
    threads: Threads = None,
    streams: Streams = None,
    max_recall_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Gate: largest loss of recall@1, in percentage points."),
    ] = None,
    min_overlap: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Gate: smallest overlap@10, from 0 to 1.")
    ] = None,
    descriptor_dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE", help="Also measure a gallery kept as float32, float16, int8 or binary; may be repeated."
        ),
    ] = None,
    pca: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Also measure a gallery of N principal components; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the result here as JSON.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report with charts and pictures.")] = None,
    strict: Strict = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON; --json FILE.json writes it there instead.")
    ] = False,
) -> None:
    """Measure engines' speed and retrieval against their model. Exit 3 if the gate fails."""
    from ...hardware.packages import check_runtime

    paths, named = _engines_and_json_file(engines or [], as_json)
    if named and out:
        raise InputError(f"bench writes one JSON file, and --out {out} and --json {named} name two; leave one out.")
    out = out or named
    for written in (out, html):
        if written and _is_zip(written):
            raise InputError(f"{written} is an engine or a checkpoint, and bench would replace it; name another file.")
    check_runtime()
    from ...datasets.left_out import LeftOut
    from ...files import write_text
    from ...quality.bench import BenchOptions
    from ...quality.bench import bench as run
    from ...quality.report import write_bench_report
    from ...runtime.provenance import engines_of_one_model
    from ..terminal import bench_tables, phases, tell_left_out, warn

    if not paths:
        paths, left_out = engines_of_one_model(ARTIFACTS)
        for path, reason in left_out.items():
            warn(f"{path} is left out: {reason}; build it again, or name it to measure it.")
    given = {"max_recall_drop_pp": max_recall_drop, "min_overlap_at_10": min_overlap}
    limits = {name: value for name, value in given.items() if value is not None}
    options = BenchOptions(
        data=data,
        reference=reference,
        batch_sizes=batch,
        seconds=seconds,
        threads=threads,
        streams=streams or 1,
        limits=limits,
        descriptor_dtypes=descriptor_dtype or (),
        pcas=pca or (),
        strict=strict,
    )
    with phases() as on_progress:
        result, rows = run(paths, options, on_progress)
    tell_left_out(LeftOut(**picture) for picture in result["left_out"])
    if out:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if html:
        write_bench_report(html, result, rows)
    if as_json and not named:
        print(json.dumps(result))
    else:
        bench_tables(result)
    if failures := result["gate"]["failures"]:
        raise GateError("; ".join(failures))


def _engines_and_json_file(arguments: list[Path], as_json: bool) -> tuple[list[Path], Path | None]:
    """Tell engines from the FILE.json of ``--json FILE.json``, which is an argument since --json is a flag."""
    if not as_json:
        return arguments, None
    files = [path for path in arguments if path.suffix == ".json"]
    engines = [path for path in arguments if path not in files]
    if len(files) > 1:
        raise InputError(f"bench writes one JSON file, and {files[0]} and {files[1]} are two; leave one out.")
    if odd := next((path for path in engines if path.suffix != ".cgd" and not _is_zip(path)), None):
        raise InputError(f"{odd} is no engine; to write JSON into it pass --out {odd}, or end its name in .json.")
    return engines, next(iter(files), None)


def _is_zip(path: Path) -> bool:
    """Whether a file is a zip, as engines and checkpoints are; does not open a pipe, which would wait."""
    return path.is_file() and is_zipfile(path)


def embed(
    images: Annotated[list[str], PicturesArgument()],
    engine: Annotated[Path, typer.Option("-e", "--engine", metavar="FILE", help="A .cgd engine.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FILE", help="Index to write, .npy or .parquet; with --ray a folder, .parquet."
        ),
    ],
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Pictures in a batch.",
            show_default="CPU: 8, or what --autotune found here; CUDA: the engine's largest",
        ),
    ] = None,
    strict: Strict = False,
    descriptor_dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="How the index keeps values: float32, float16, int8 or binary.")
    ] = "float32",
    pca: Annotated[
        int | None, typer.Option(metavar="N", help="Keep only the first N principal components of the descriptors.")
    ] = None,
    paths: Annotated[
        str,
        typer.Option(metavar="RULE", help="How the index names pictures: relative to its own folder, or absolute."),
    ] = "relative",
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode large JPEG files smaller: pixels differ by about one level.")
    ] = False,
    decoder: Annotated[
        str,
        typer.Option(metavar="NAME", help="Who decodes JPEG files: pillow, or for an engine on CUDA nvjpeg."),
    ] = "pillow",
    threads: Threads = None,
    streams: Streams = None,
    ray: Annotated[
        bool, RayOption("--ray", help="Embed with Ray workers into a folder; a second run continues the first.")
    ] = False,
    workers: Annotated[
        int | None,
        RayOption(min=1, metavar="N", help="Engines, with --threads each.", show_default="as many as fit"),
    ] = None,
    shard: Annotated[
        int | None, RayOption(min=1, metavar="N", help="Pictures in each Parquet file.", show_default="1024")
    ] = None,
    ray_address: Annotated[
        str | None,
        RayOption(metavar="ADDRESS", help="Address of a cluster, or auto.", show_default="start Ray on this machine"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Embed pictures into an index: descriptors and paths."""
    from ...hardware.packages import check_runtime

    for_ray = {"--workers": workers, "--shard": shard, "--ray-address": ray_address}
    if not ray and (given := [name for name, value in for_ray.items() if value is not None]):
        raise InputError(f"{given[0]} is for --ray; add --ray, or leave it out.")
    if ray and pca is not None:
        raise InputError("--pca needs every descriptor at once, and --ray has them in shards; leave one of them out.")
    if ray and out.suffix != ".parquet":
        raise InputError(f"{out} does not end in .parquet, and --ray writes a folder of Parquet files; call it so.")
    if ray and decoder != "pillow":
        raise InputError(
            f"--decoder {decoder} is not for --ray, whose workers decode with pillow; leave one of them out."
        )
    check_runtime()
    from ...datasets.left_out import LeftOut
    from ...pictures.images import read_images
    from ...runtime.cuda.nvjpeg import check_decoder
    from ...runtime.engine import open_engine
    from ...runtime.enginefile import read_engine
    from ...runtime.tuning import setting_here
    from ...search.compact import Compact
    from ...search.index import Reading, check_index_path, index_images, write_index
    from ...search.paths import check_paths_are
    from ...serving.scale import SHARD, RayOptions, embed_on_ray
    from ..terminal import counting, first_few, warn, warn_all

    check_index_path(out)
    check_paths_are(paths)
    check_decoder(decoder, fast_decode)
    listed = read_images(images)
    warn_all(listed.notes)
    left_out: list[LeftOut] = []
    file = read_engine(engine)
    spec = file.manifest.spec
    if file.untuned:
        warn(file.untuned)
    tuned = setting_here(file.tunings, "throughput")
    if tuned and not (threads or streams or workers):
        threads, streams = tuned.threads, tuned.streams
    shards: dict[str, object] = {}
    with (
        first_few("left out") as tell_left_out,
        first_few("workers that died") as tell_killed,
        counting("Embedding", len(listed)) as advance,
    ):

        def leave_out(number: int, error: InputError) -> None:
            left_out.append(LeftOut.of(listed.path(number), error))
            tell_left_out(str(left_out[-1]), left_out[-1].reason)

        on_error = None if strict or len(listed) == 1 else leave_out
        if ray:
            options = RayOptions(
                batch_size=batch,
                fast_decode=fast_decode,
                descriptor_dtype=descriptor_dtype,
                paths_are=paths,
                shard=shard or SHARD,
                workers=workers,
                threads=threads,
                streams=streams,
                address=ray_address,
            )
            written = embed_on_ray(listed, file, out, options, on_error, advance, lambda told: tell_killed(told, told))
            form, count = Compact(descriptor_dtype, spec.dim), written.pictures
            shards = {name: getattr(written, name) for name in ("shards", "resumed", "redone", "killed")}
        else:
            with open_engine(file, threads=threads, streams=streams) as loaded:
                index = index_images(
                    loaded,
                    listed,
                    Reading(batch_size=batch, fast_decode=fast_decode, decoder=decoder),
                    on_error,
                    advance,
                    warn,
                    descriptor_dtype=descriptor_dtype,
                    pca=pca,
                )
            write_index(index, out, paths)
            form, count = index.compact, len(index.paths)
    facts = {
        "path": str(out),
        "pictures": count,
        "left_out": [picture._asdict() for picture in left_out],
        "space_id": spec.space_id,
        "descriptor_dtype": form.dtype,
        "pca": form.pca,
        "bytes_per_descriptor": form.bytes_per_descriptor,
        **shards,
    }
    kept = f"{form.length} values each as {form.dtype}, {form.bytes_per_descriptor} bytes a descriptor"
    counted = "".join(f", {number} {name}" for name, number in shards.items())
    tell(facts, f"{out}: {count} pictures, {kept}, {len(left_out)} left out{counted}", as_json)


def search(
    query: Annotated[list[str], PicturesArgument()],
    engine: Annotated[Path, typer.Option("-e", "--engine", metavar="FILE", help="A .cgd engine.")],
    index: Annotated[Path, typer.Option(metavar="FILE", help="An index of cgd-deploy embed.")],
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Neighbours to show.")] = 8,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures.")] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop at the first bad picture, and refuse an engine of another precision than the index, unless "
            "measured as safe.",
        ),
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the nearest pictures of an index."""
    from ...hardware.packages import check_runtime

    check_runtime()
    import numpy as np

    from ...pictures.images import read_images
    from ...quality.report import Neighbour, QueryRow, write_search_page
    from ...runtime.engine import load
    from ...search.index import read_index
    from ..terminal import errors, search_lines, warn, warn_all

    gallery = read_index(index)
    left_out: list[LeftOut] = []
    listed = read_images(query)
    warn_all(listed.notes)
    queries = good_pictures(listed, strict, left_out)
    with load(engine, threads=threads, warm_up=False) as loaded:  # a few queries need few of the batch sizes
        if mixing := gallery.mixing(loaded):
            if strict and not mixing.safe:
                raise InputError(f"{mixing.told}, or leave --strict out.")
            errors.print(f"{'note' if mixing.safe else 'warning'}: {mixing.told}.", style="yellow")
        shown = min(k, len(gallery.paths))
        descriptors = np.concatenate([part for _, part in loaded.embed_list(queries)])
        indices, similarities = gallery.search(loaded, descriptors, shown)
    if shown < k:
        warn(f"{index} has fewer pictures than -k {k}: each query finds all {shown}.")
    found = [
        (path, [(gallery.paths[i], round(float(s), 5)) for i, s in zip(row, scores, strict=True)])
        for path, row, scores in zip(queries.paths, indices, similarities, strict=True)
    ]
    if html:
        rows = [
            QueryRow(path, None, None, {"Neighbours": [Neighbour(Path(p), None, None, s) for p, s in strip]})
            for path, strip in found
        ]
        write_search_page(html, f"Neighbours in {index}", rows)
    facts: list[dict[str, Any]] = [
        {"query": str(path), "neighbours": [{"path": p, "similarity": s} for p, s in strip]} for path, strip in found
    ]
    facts += [{"query": picture.path, "neighbours": [], "left_out": picture.reason} for picture in left_out]
    tell(facts, search_lines(found), as_json)


def inspect(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="A .cgd engine.")],
    self_test: Annotated[bool, typer.Option("--self-test", help="Replay the golden pictures.")] = False,
    autotune: Autotune = False,
    as_json: Json = False,
) -> None:
    """Show what an engine file records, and what runs it fastest here.

    --self-test also checks that it still gives the same descriptors.
    """
    from ...runtime.enginefile import read_engine
    from ...runtime.provenance import stale
    from ...runtime.tuning import tuning_here

    if self_test or autotune:
        from ...hardware.packages import check_runtime

        check_runtime()
    if autotune:
        from ...runtime.autotune import autotune as tune
        from ..terminal import phases

        with phases() as on_progress:
            tune(engine, on_progress=on_progress)
    file = read_engine(engine)
    facts = {
        **file.manifest.to_dict(),
        "tuning": tuning_here(file.tunings) or file.manifest.tuning,
        "tuned_machines": [tuning["machine"] for tuning in file.tunings],
        "untuned": file.untuned,
        "stale": stale(engine, file.manifest),
    }
    if self_test:
        from ...runtime.engine import open_engine

        with open_engine(file) as loaded:
            facts["self_test"] = {"cosine_min": loaded.self_test()}
    tell(facts, json.dumps(facts, indent=1), as_json)


def doctor(as_json: Json = False) -> None:
    """Show what is installed here and what is wrong. Exit 2 if no engine can run."""
    from ...hardware.packages import check_runtime
    from ..doctor import ROLES, examine

    facts = examine()
    tables = ("packages", "broken", "problem")
    lines = [f"{name:<17} {_plain(value)}" for name, value in facts.items() if name not in tables]
    lines += [f"{name:<27} {version or '-':<14} {ROLES[name]}" for name, version in facts["packages"].items()]
    lines += [f"{name} is installed but cannot be loaded: {reason}" for name, reason in facts["broken"].items()]
    tell(facts, "\n".join(lines), as_json)
    check_runtime()


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {fact}" for name, fact in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
