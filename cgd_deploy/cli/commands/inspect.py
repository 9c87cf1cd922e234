"""``cgd-deploy inspect``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from ..options import Autotune, Engine, Json


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    engine: Engine
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Run the golden pictures and compare their descriptors.")
    ] = False
    autotune: Autotune = False
    as_json: Json = False


def inspect(options: InspectOptions) -> None:
    """Show an engine's manifest and its tuning on this machine."""
    from ...runtime.enginefile import read_engine
    from ...runtime.provenance import stale
    from ...runtime.tuning import tuning_here
    from ..terminal import phases, print_result

    if options.self_test or options.autotune:
        from ...hardware.packages import check_runtime

        check_runtime()
    if options.autotune:
        from ...runtime.autotune import autotune

        with phases() as on_progress:
            autotune(options.engine, on_progress=on_progress)
    file = read_engine(options.engine)
    facts = {
        **file.manifest.to_dict(),
        "tuning": tuning_here(file.tunings) or file.manifest.tuning,
        "tuned_machines": [tuning["machine"] for tuning in file.tunings],
        "untuned": file.untuned,
        "stale": stale(options.engine, file.manifest),
    }
    if options.self_test:
        from ...runtime.engine import open_engine

        with open_engine(file) as loaded:
            facts["self_test"] = {"cosine_min": loaded.self_test()}
    print_result(facts, json.dumps(facts, indent=1), options.as_json)
