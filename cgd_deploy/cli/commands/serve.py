"""``cgd-deploy serve``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError, not_installed
from ..options import Threads

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...serving.server.models import Models
    from ...serving.server.settings import ServerSettings

BatchingOption = partial(typer.Option, rich_help_panel="Batching")
LimitOption = partial(typer.Option, rich_help_panel="Limits")
AccessOption = partial(typer.Option, rich_help_panel="Access")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    engines: Annotated[
        list[str], typer.Argument(metavar="ENGINE", help=".cgd engines; NAME=ENGINE gives one another name.")
    ]
    index: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An index of cgd-deploy embed to search, by the engine of its space; may be repeated.",
            show_default="no search",
        ),
    ] = None
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is every address of this machine.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0 takes a free one.")] = 8000
    threads: Threads = None
    streams: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Batches that are computed at the same time and share --threads.",
            show_default="2; on a CPU more, if --autotune found more here",
        ),
    ] = None

    max_batch: Annotated[
        int | None,
        BatchingOption(
            min=1,
            metavar="N",
            help="Pictures in a full batch.",
            show_default="CPU: 8, or what --autotune found here; CUDA: the engine's largest",
        ),
    ] = None
    max_delay_ms: Annotated[
        float, BatchingOption(min=0, metavar="MS", help="How long a picture waits for others to fill its batch.")
    ] = 2.0
    max_queue: Annotated[
        int, BatchingOption(min=1, metavar="N", help="Pictures that wait; the server answers one more with 503.")
    ] = 256

    timeout_ms: Annotated[
        float, LimitOption(min=1, metavar="MS", help="Time after which a picture is not computed any more.")
    ] = 30_000
    max_body_mb: Annotated[float, LimitOption(min=0.001, metavar="MB", help="Megabytes of a request.")] = 32
    max_pictures: Annotated[int, LimitOption(min=1, metavar="N", help="Pictures in a request.")] = 64

    api_keys: Annotated[
        Path | None,
        AccessOption(
            metavar="FILE",
            help="File with a key in each line; KEY admin may also reload engines and change galleries.",
            show_default="everybody may ask, nobody may change anything",
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        AccessOption(
            metavar="ORIGIN",
            help="Origin whose pages may ask this server, such as https://shop.example; may be repeated.",
            show_default="none",
        ),
    ] = None


def serve(options: ServeOptions) -> None:
    """Serve engines and galleries over HTTP."""
    from ...hardware.packages import check_runtime

    check_runtime()
    try:
        from ...serving.server.access import log_to_stdout
        from ...serving.server.run import listen, run_server
    except ModuleNotFoundError as error:
        raise not_installed(error, "serve") from error
    from ..logs import log_warnings
    from ..terminal import errors

    named, settings, load = named_files(options.engines), _settings(options), _loader(options)
    opened = listen(options.host, options.port)
    host, port = opened.getsockname()[:2]
    errors.print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}; loading {', '.join(named)}")
    log_warnings()
    log_to_stdout()

    def load_models() -> Models:
        return _load_models(named, options.index or [], load)

    run_server(opened, load_models, settings, lambda: errors.print("ready; Ctrl-C ends it"))


def named_files(texts: list[str]) -> dict[str, Path]:
    """The engine files by their names. Raises InputError if two have one name."""
    found: dict[str, Path] = {}
    for text in texts:
        given = re.fullmatch(r"([^/=]+)=(.+)", text)
        path = Path(given[2] if given else text)
        name = given[1] if given else path.stem
        if name in found:
            raise InputError(f"two engines are called {name}; give one another name, such as other={path}.")
        found[name] = path
    return found


def _settings(options: ServeOptions) -> ServerSettings:
    from ...serving.server.settings import ServerSettings, read_keys

    return ServerSettings(
        keys=read_keys(options.api_keys) if options.api_keys else None,
        max_body=int(options.max_body_mb * 1e6),
        max_pictures=options.max_pictures,
        timeout_ms=options.timeout_ms,
        cors_origins=tuple(options.cors_origin or ()),
    )


def _loader(options: ServeOptions) -> Callable[[Path], Engine]:
    from ...runtime.scheduler import Batching
    from ...serving.server.models import load_for_requests

    batching = Batching(max_batch=options.max_batch, max_delay_ms=options.max_delay_ms, max_queue=options.max_queue)
    return lambda path: load_for_requests(path, options.threads, options.streams, batching)


def _load_models(named: dict[str, Path], indices: list[Path], load: Callable[[Path], Engine]) -> Models:
    """Load engines and galleries, and replay the golden pictures. Raises InputError for an index of another space."""
    from ...search.index import read_index
    from ...serving.server.gallery import Gallery
    from ...serving.server.models import Model, Models, load_tested

    models = [Model(name, path, load_tested(load, path), load) for name, path in named.items()]
    for path in indices:
        gallery = Gallery(path, read_index(path))
        space_id = gallery.index.space_id
        free = [model for model in models if model.engine.spec.space_id == space_id and model.gallery is None]
        if not free:
            raise InputError(
                f"no engine describes space {space_id} of {path}, or it has an index already; "
                "make the index again with one of these engines."
            )
        gallery.check(free[0].engine)
        free[0].gallery = gallery
    return Models(models)
