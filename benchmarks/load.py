"""Latency and throughput of one engine under load, served in several ways: open loop, closed loop and from C.

    python benchmarks/load.py int8.cgd --http --triton --service build/throughput -o benchmarks/results/load.json

Open loop: requests of one picture arrive at random (Poisson), whether or not earlier requests were answered. Latency
counts from the time when a request was due. Closed loop: each client sends its next picture when it has its last
answer. Loads and throughputs are shares of the peak, the speed of full batches in a loop. Machines change their speed,
so the peak is measured again between any two steps, and a step is compared with the mean of the two peaks around it.
Requests carry pixels, but over HTTP they carry JPEG files of 256 x 256 pixels. Server and clients share the cores of
the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

import charts
import running
from cgd_deploy import Batching, Engine, InputError, ModelSpec, Overloaded, load, read_images
from cgd_deploy.hardware.cpu import available_threads, cpu_name, instruction_sets
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.hardware.timing import percentile, percentiles_ms
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.runtime.golden import golden_images
from httpserver import Client, jpeg_files
from httpserver import serving as serving_http

Send: TypeAlias = Callable[[NDArray[np.uint8]], "Future[Any]"]
OnRound: TypeAlias = Callable[[float], None]
Found = TypeVar("Found")

LOADS = (0.2, 0.4, 0.6, 0.8, 0.95, 1.5)
PEAK_SECONDS = 2.0
PATIENCE = 120.0
"""Seconds after the last arrival after which a request counts as lost."""
OURS = "cgd-deploy"
HTTP = "cgd-deploy serve, JPEG over HTTP"
TRITON = "Triton, Python backend, gRPC"
COLOURS = {
    OURS: "#d95f0e",
    HTTP: "#7b3294",
    "one at a time": "#8a8a8a",
    "full batches only": "#2c7fb8",
    TRITON: "#4d9221",
}


@dataclass
class Answers:
    """The outcome of the requests of one open loop."""

    sent: int = 0
    shed: int = 0
    failed: int = 0
    lost: int = 0
    seconds: float = 0.0
    in_time: int = 0
    at_peak: float = 0.0
    latencies: list[float] = field(default_factory=list)
    full_batches: list[float] = field(default_factory=list)

    def set_beside(self, peak: float, batch: int, max_delay_ms: float) -> None:
        """Compare with ``peak`` pictures a second: the pictures of a full load, and latencies in full batches."""
        self.at_peak = peak * self.seconds
        self.full_batches = [(latency - max_delay_ms / 1000) * peak / batch for latency in self.latencies]

    def add(self, other: Answers) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def facts(self) -> dict[str, Any]:
        """The JSON; ``served_per_second`` and ``of_peak`` count answers that came while requests still arrived."""
        p99 = percentile(self.full_batches, 99)
        return {
            "sent": self.sent,
            "served": len(self.latencies),
            "shed": self.shed,
            "failed": self.failed,
            "lost": self.lost,
            "offered_per_second": round(self.sent / self.seconds, 2),
            "served_per_second": round(self.in_time / self.seconds, 2),
            "of_peak": round(self.in_time / self.at_peak, 4),
            "latency_ms": percentiles_ms(self.latencies) if self.latencies else None,
            "p99_full_batches": None if p99 is None else round(p99, 3),
        }


def open_loop(
    send: Send,
    pictures: NDArray[np.uint8],
    rate: float,
    seconds: float,
    random: np.random.Generator,
    patience: float = PATIENCE,
) -> Answers:
    """Send at random, ``rate`` a second for ``seconds``, and wait for every answer."""
    due = np.cumsum(random.exponential(1 / rate, size=max(1, int(3 * rate * seconds) + 20)))
    due = due[due < seconds]
    answered: dict[int, float] = {}
    futures: dict[int, Future[Any]] = {}
    found = Answers(sent=len(due), seconds=seconds)
    begin = time.perf_counter()

    def note(number: int) -> Callable[[Future[Any]], None]:
        return lambda _: answered.__setitem__(number, time.perf_counter() - begin)

    for number, moment in enumerate(due):
        time.sleep(max(0.0, begin + moment - time.perf_counter()))
        try:
            futures[number] = send(pictures[number % len(pictures)])
        except Overloaded:
            found.shed += 1
        else:
            futures[number].add_done_callback(note(number))
    time.sleep(max(0.0, begin + seconds - time.perf_counter()))
    found.lost = len(wait(futures.values(), timeout=patience).not_done)
    for number, future in futures.items():
        if not future.done():
            continue
        if isinstance(future.exception(), Overloaded):
            found.shed += 1
        elif future.exception():
            found.failed += 1
        else:
            found.latencies.append(answered[number] - float(due[number]))
            found.in_time += answered[number] <= seconds
    return found


def closed_loop(send: Send, pictures: NDArray[np.uint8], clients: int, seconds: float) -> float:
    """Answers a second for ``clients`` threads, each of which waits for its answer before it sends again."""
    begin = time.perf_counter()
    end = begin + seconds

    def client(number: int) -> int:
        count = 0
        while time.perf_counter() < end:
            send(pictures[(number + count) % len(pictures)]).result(PATIENCE)
            count += 1
        return count

    with ThreadPoolExecutor(clients) as pool:
        answers = sum(pool.map(client, range(clients)))
    return answers / (time.perf_counter() - begin)


def peak(engine: Engine, batch: NDArray[np.uint8], seconds: float) -> float:
    """Pictures a second of full batches in a loop, with no other load."""
    engine.embed(batch)
    begin, calls = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < seconds or not calls:
        engine.embed(batch)
        calls += 1
    return calls * len(batch) / taken


def servers(stack: ExitStack, options: argparse.Namespace, pictures: NDArray[np.uint8]) -> dict[str, Send]:
    """Ways to serve the engine, by name; the stack closes them. Only rows of ``pictures`` will be sent."""
    settings = {
        "one at a time": Batching(max_batch=1, max_delay_ms=0, max_queue=options.max_queue),
        "full batches only": Batching(max_batch=options.batch, max_delay_ms=1000, max_queue=options.max_queue),
        OURS: Batching(max_batch=options.batch, max_delay_ms=options.max_delay_ms, max_queue=options.max_queue),
    }
    found: dict[str, Send] = {}
    for name, batching in settings.items():
        engine = stack.enter_context(load(options.engine, threads=options.threads, batching=batching))
        found[name] = engine.submit
    if options.http:
        found[HTTP] = http(stack, options, pictures)
    if options.triton:
        found[TRITON] = triton(stack, options.engine)
    return found


def http(stack: ExitStack, options: argparse.Namespace, pictures: NDArray[np.uint8]) -> Send:
    """Start ``cgd-deploy serve`` and send it JPEG files of the pictures."""
    batching = {name: getattr(options, name) for name in ("threads", "max_delay_ms", "max_queue")}
    batching["max_batch"] = options.batch
    given = [part for name, value in batching.items() for part in (f"--{name.replace('_', '-')}", value)]
    address, _ = stack.enter_context(serving_http(options.engine, *given))
    client = Client(address, threads=2 * options.max_queue + options.batch)
    stack.callback(client.close)
    files = dict(zip((picture.ctypes.data for picture in pictures), jpeg_files(pictures), strict=True))
    return lambda pixels: client.submit(files[pixels.ctypes.data])


def triton(stack: ExitStack, engine: Path) -> Send:
    """Start a tritonserver and ask it over gRPC; raises CgdError if there is none."""
    import tritonclient.grpc as grpc

    from cgd_deploy.serving.triton import export_triton
    from tritonserver import serving

    repository = Path(stack.enter_context(TemporaryDirectory()))
    model = export_triton(engine, repository, python=True)
    _, url = stack.enter_context(serving(repository))
    client = stack.enter_context(grpc.InferenceServerClient(url))

    def send(pixels: NDArray[np.uint8]) -> Future[Descriptors]:
        future: Future[Descriptors] = Future()
        images = grpc.InferInput("images", [1, *pixels.shape], "UINT8")
        images.set_data_from_numpy(pixels[None])

        def answer(result: Any, error: Exception | None) -> None:
            if error:
                future.set_exception(error)
            else:
                future.set_result(result.as_numpy("descriptors")[0])

        client.async_infer(model.name, [images], answer)
        return future

    return send


def from_c(service: Path, engine: Path, threads: int, seconds: float) -> float:
    """Pictures a second of examples/native/throughput.cpp, whose threads each send one picture at a time."""
    command = [str(service), str(engine), str(threads), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{service} failed ({done.stderr.strip()[-200:]}); build it again as docs/native.md says.")
    return float(json.loads(done.stdout.splitlines()[-1])["images_per_second"])


class Beside:
    """Measures a value again between any two steps, so that each step has the mean of the values around it."""

    def __init__(self, measure: Callable[[], float]) -> None:
        self._measure = measure
        self.found = [measure()]

    def step(self, call: Callable[[float], Found]) -> tuple[Found, float]:
        """Call ``call`` with the last value; returns its result, and the mean of the values before and after."""
        value = call(self.found[-1])
        self.found.append(self._measure())
        return value, float(np.mean(self.found[-2:]))


def throughputs(
    base: str, measure: Callable[[], float], calls: dict[str, Callable[[], float]], rounds: int, on_round: OnRound
) -> dict[str, Any]:
    """Pictures a second of ``base`` and of each call, and each call's share of the base, as medians over rounds."""
    beside = Beside(measure)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            found[name].append(beside.step(lambda _, call=call: call()))
        on_round((number + 1) / rounds)
    of_base = {base: _median_rate(beside.found)}
    for name, each in found.items():
        parts = [value / at for value, at in each]
        of_base[name] = {
            **_median_rate([value for value, _ in each]),
            f"of_{base}": round(float(np.median(parts)), 4),
            "rounds": [round(part, 4) for part in parts],
        }
    return of_base


def _median_rate(rates: Sequence[float]) -> dict[str, Any]:
    return {"images_per_second": round(float(np.median(rates)), 2)}


def open_loops(
    ways: dict[str, Send], pictures: NDArray[np.uint8], beside: Beside, options: argparse.Namespace, on_round: OnRound
) -> dict[tuple[float, str], Answers]:
    """What became of the requests at each load and by each server, over all rounds."""
    random = np.random.default_rng(0)
    answers = {(share, name): Answers() for share in options.loads for name in ways}
    for number in range(options.rounds):
        for step, (share, name) in enumerate(answers):
            found, at = beside.step(
                lambda most, share=share, name=name: open_loop(
                    ways[name], pictures, share * most, options.seconds, random
                )
            )
            found.set_beside(at, options.batch, options.max_delay_ms)
            answers[share, name].add(found)
            on_round((number + (step + 1) / len(answers)) / options.rounds)
    return answers


def beside_python(
    send: Send, pictures: NDArray[np.uint8], options: argparse.Namespace, on_round: OnRound
) -> dict[str, Any] | None:
    """Throughput of threads in C and in Python; None without --service."""
    if not options.service:
        return None
    callers = throughputs(
        "Python",
        partial(closed_loop, send, pictures, options.c_threads, options.seconds),
        {"C": partial(from_c, options.service, options.engine, options.c_threads, options.seconds)},
        options.rounds,
        on_round,
    )
    return {"threads": options.c_threads, "callers": callers}


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Everything but the writing; raises CgdError."""
    with ExitStack() as stack:
        bare = stack.enter_context(load(options.engine, threads=options.threads))
        pictures = _pictures(options, bare.spec)
        ways = servers(stack, options, pictures)
        for send in ways.values():
            send(pictures[0]).result(PATIENCE)
        peak_now = partial(peak, bare, pictures[: options.batch], min(PEAK_SECONDS, options.seconds))
        beside = Beside(peak_now)
        answers = open_loops(ways, pictures, beside, options, partial(on_progress, "open loop"))
        clients = {name: partial(closed_loop, ways[name], pictures, options.clients, options.seconds) for name in ways}
        closed = throughputs("peak", peak_now, clients, options.rounds, partial(on_progress, "closed loop"))
        native = beside_python(ways[OURS], pictures, options, partial(on_progress, "from C"))
        manifest = bare.manifest
    most = float(np.median(beside.found))
    return {
        "schema": 1,
        "environment": {
            "cpu": cpu_name(),
            "instruction_sets": instruction_sets(),
            "threads": options.threads,
            "packages": {name: package_version(name) for name in ("numpy", "openvino", "onnxruntime", "tritonclient")},
            "seconds": options.seconds,
            "rounds": options.rounds,
        },
        "engine": {"backend": manifest.backend, "precision": manifest.precision.value},
        "batching": {
            "max_batch": options.batch,
            "max_delay_ms": options.max_delay_ms,
            "max_queue": options.max_queue,
        },
        "peak_images_per_second": round(most, 2),
        "full_batch_ms": round(1000 * options.batch / most, 2),
        "open_loop": [{"server": name, "load": share, **found.facts()} for (share, name), found in answers.items()],
        "closed_loop": {"clients": options.clients, "servers": closed},
        "from_c": native,
    }


def _pictures(options: argparse.Namespace, spec: ModelSpec) -> NDArray[np.uint8]:
    """uint8 [4 batches, H, W, 3]: made pictures, or the first ones of --pictures."""
    count = 4 * options.batch
    if options.pictures is None:
        return golden_images(spec, count)
    paths = read_images(options.pictures).paths[:count]
    if len(paths) < count:
        raise InputError(f"{options.pictures} has {len(paths)} pictures, and {count} are needed; name more.")
    return np.stack([preprocess(path, spec) for path in paths])


def chart(result: dict[str, Any], path: Path) -> None:
    """Latency and throughput against load, a line for each server."""
    figure = charts.new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(one["server"] for one in result["open_loop"]):
        steps = [one for one in result["open_loop"] if one["server"] == name and one["latency_ms"]]
        loads = [100 * one["load"] for one in steps]
        style = {"color": COLOURS[name], "marker": "o", "markersize": 4, "label": name}
        left.plot(loads, [one["latency_ms"]["p99"] for one in steps], **style)
        right.plot(loads, [100 * one["of_peak"] for one in steps], **style)
    left.set(title="99th percentile of latency", ylabel="ms", yscale="log")
    right.set(title="served", ylabel="% of peak", ylim=(0, 110))
    limit = result["batching"]["max_delay_ms"] + 2.5 * result["full_batch_ms"]
    left.axhline(limit, color="#bbbbbb", linestyle=":", linewidth=1)
    left.annotate(
        "delay + 2.5 full batches", (0.02, limit), xycoords=("axes fraction", "data"), va="bottom", fontsize=8
    )
    for axes in (left, right):
        axes.set_xlabel("offered load, % of peak")
        charts.tidy(axes)
    left.legend(frameon=False, fontsize=8)
    charts.save(figure, path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = running.parser(__doc__, "load.json")
    parser.add_argument("engine", type=Path, help="a .cgd file")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each step in each round [default: 20]")
    parser.add_argument("--rounds", type=int, default=3, help="[default: 3]")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares of the peak to offer")
    parser.add_argument("--batch", type=int, default=8, help="of a full batch [default: 8]")
    parser.add_argument("--max-delay-ms", type=float, default=2.0, help="[default: 2]")
    parser.add_argument("--max-queue", type=int, default=64, help="[default: 64]")
    parser.add_argument("--clients", type=int, default=16, help="of the closed loop [default: 16]")
    parser.add_argument("--threads", type=int, default=available_threads(), help="of each engine [default: all]")
    parser.add_argument("--pictures", help="folder or list of pictures to send [default: made pictures]")
    parser.add_argument("--http", action="store_true", help="also by cgd-deploy serve, which gets JPEG files")
    parser.add_argument("--triton", action="store_true", help="also by a tritonserver, see docs/triton.md")
    parser.add_argument("--service", type=Path, help="examples/native/throughput.cpp, built: compares C with Python")
    parser.add_argument("--c-threads", type=int, default=8, help="that send in that comparison [default: 8]")
    options = parser.parse_args(arguments)
    counts = (options.rounds, options.batch, options.max_queue, options.clients, options.threads, options.c_threads)
    if min(counts) < 1 or min(options.seconds, *options.loads) <= 0:
        parser.error("counts take 1 or more, --seconds and --loads more than 0")
    return options


def main() -> None:
    running.run(measure, parse(), chart)


if __name__ == "__main__":
    main()
