"""embed --ray on a Ray of two workers: what the local run gives, whoever is killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, listing, write_fake_engine
from PIL import Image

from cgd_deploy.errors import InputError, install_line
from cgd_deploy.limits import Limits
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.runtime import engine
from cgd_deploy.runtime.autotune import autotune
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.search.index import Index, read_index
from cgd_deploy.search.shards import Run, Shards
from cgd_deploy.serving.scale import TRIES, RayOptions, Worker, _job, _on_gpu, _places, _run, _up_to_date
from cgd_deploy.spec import Precision

pytest.importorskip("pyarrow")
ray_data = pytest.importorskip("ray.data")
import ray  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),  # of its own settings, as it copies them
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),  # of Ray 2.40, of its node
    pytest.mark.filterwarnings("ignore:unclosed file .*/ray/session_:ResourceWarning"),
]


BAD = {7, 8, *range(40, 50)}


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    """A Ray with two cores that this process is connected to.

    Its listener is silent: what it says of actors that a command left comes late, into any test's output. Commands with
    a Ray of their own are heard in full, by the tests that start one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.worker.print_to_stdstream", lambda *_, **__: None)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """The working folder, with an engine."""
    monkeypatch.chdir(tmp_path)
    write_fake_engine(Path("fake.cgd"))
    return tmp_path


@pytest.fixture
def boxed(desk) -> ImageList:
    """60 boxes of 6 pictures, and files that are none at 7, 8 and 40 to 49."""
    lines = ["image\tclass\tx1\ty1\tx2\ty2"]
    for number in range(60):
        name = f"bad-{number}.jpg" if number in BAD else f"{number % 6}.jpg"
        if number in BAD:
            Path(name).write_bytes(b"no picture")
        lines.append(f"{name}\tx\t{number % 20}\t{number // 20}\t{40 + number % 20}\t64")
    for number in range(6):
        draw(number, 0).save(f"{number}.jpg")
    Path("list.tsv").write_text("\n".join(lines))
    return read_images("list.tsv")


def same(one: Index, other: Index) -> bool:
    """Row for row, and in what they say of themselves."""
    told = [(list(index.paths), index.space_id, index.precision, index.compact.dtype) for index in (one, other)]
    return told[0] == told[1] and one.stored.dtype == other.stored.dtype and np.array_equal(one.stored, other.stored)


@pytest.mark.parametrize("dtype", ["float32", "binary"])
def test_it_gives_what_the_local_run_gives(cli, ray_of_two, boxed, dtype):
    embed = ["embed", "list.tsv", "-e", "fake.cgd", "--descriptor-dtype", dtype, "--json"]
    code, local, told_locally = cli(*embed, "-o", "local.parquet")
    assert code == 0
    code, out, told = cli(*embed, "-o", "ray.parquet", "--ray", "--workers", 2, "--shard", 8)
    assert code == 0, told
    facts, ours = json.loads(local), json.loads(out)
    assert [ours.pop(name) for name in ("shards", "resumed", "redone", "killed")] == [8, 0, 0, 0]
    left_out, left_out_locally = ours.pop("left_out"), facts.pop("left_out")
    assert sorted(map(str, left_out)) == sorted(map(str, left_out_locally))
    assert {one["path"] for one in left_out} == {f"bad-{number}.jpg" for number in BAD}
    assert {one["reason"].split(" (")[0] for one in left_out} == {"cannot be decoded"}
    assert {**ours, "path": ""} == {**facts, "path": ""} and facts["pictures"] == 48
    assert told.count("left out: bad-") == told_locally.count("left out: bad-") == 10
    assert told.splitlines()[-1] == told_locally.splitlines()[-1]
    assert told.splitlines()[-1].startswith("left out: 12 in all, 12 x cannot be decoded (no picture in one of")
    assert same(read_index("ray.parquet"), read_index("local.parquet"))
    code, found, _ = cli("search", "3.jpg", "-e", "fake.cgd", "--index", "ray.parquet", "-k", 2, "--json")
    assert code == 0 and len(json.loads(found)[0]["neighbours"]) == 2


def test_the_same_command_again_computes_only_what_is_missing(cli, ray_of_two, boxed):
    embed = ["embed", "list.tsv", "-e", "fake.cgd", "-o", "ray.parquet", "--ray", "--workers", 2, "--shard", 8]
    assert cli(*embed)[0] == 0
    whole = read_index("ray.parquet")
    shards = sorted(Path("ray.parquet").glob("*.parquet"))
    lost = [shards[1], shards[5]]
    before = {shard: shard.stat() for shard in shards}
    for shard in lost:
        shard.unlink()
    assert cli("search", "3.jpg", "-e", "fake.cgd", "--index", "ray.parquet")[2] == (
        "cgd-deploy: ray.parquet lacks 2 of its 8 shards; run the same `cgd-deploy embed --ray` again, which "
        "continues from there.\n"
    )
    code, out, _ = cli(*embed, "--json")
    facts = json.loads(out)
    assert code == 0 and (facts["shards"], facts["resumed"]) == (8, 6)
    assert (facts["pictures"], len(facts["left_out"])) == (48, 12)  # of all shards
    touched = {
        shard
        for shard in shards
        if (now := shard.stat()).st_ino != before[shard].st_ino or now.st_mtime_ns != before[shard].st_mtime_ns
    }
    assert touched == set(lost)
    assert same(read_index("ray.parquet"), whole)


def test_an_engine_that_is_tuned_in_between_goes_on(cli, ray_of_two, boxed):
    """Nor does it matter that the engine is built again, if it comes out the same."""
    embed = ["embed", "list.tsv", "-e", "fake.cgd", "-o", "ray.parquet", "--ray", "--workers", 1, "--shard", 30]
    assert cli(*embed)[0] == 0
    autotune(Path("fake.cgd"), seconds=0)
    write_fake_engine(Path("fake.cgd"))
    code, out, err = cli(*embed, "--json")
    facts = json.loads(out)
    assert (code, facts["shards"], facts["resumed"], "warning" in err) == (0, 2, 2, False)


def test_a_tuned_engine_is_the_same_run(boxed, monkeypatch):
    def run() -> Run:
        return _run(boxed, read_engine("fake.cgd"), RayOptions(shard=8))

    before = run()
    for machine in ("one", "another"):
        monkeypatch.setattr("cgd_deploy.runtime.tuning.cpu_name", lambda machine=machine: machine)
        autotune(Path("fake.cgd"), seconds=0)
        assert run() == before
    write_fake_engine(Path("fake.cgd"), noise=0.1)
    assert run() != before


def test_shards_of_pictures_that_changed_are_made_again(cli, ray_of_two, boxed):
    """Under the same name: a file that was no picture is one now."""
    embed = ["embed", "list.tsv", "-e", "fake.cgd", "-o", "ray.parquet", "--ray", "--shard", 30, "--json"]
    assert json.loads(cli(*embed)[1])["pictures"] == 48
    Path("bad-7.jpg").write_bytes(Path("1.jpg").read_bytes())
    facts = json.loads(cli(*embed)[1])
    assert [facts[name] for name in ("pictures", "shards", "resumed", "redone")] == [49, 2, 1, 1]
    assert len(facts["left_out"]) == 11
    assert cli("embed", "list.tsv", "-e", "fake.cgd", "-o", "local.npy")[0] == 0
    found, local = read_index("ray.parquet"), read_index("local.npy")
    assert list(found.paths) == list(local.paths) and np.allclose(found.stored, local.stored, atol=1e-6)


def test_strict_stops_at_a_bad_picture_also_of_a_run_before(cli, ray_of_two, boxed):
    embed = ["embed", "list.tsv", "-e", "fake.cgd", "-o", "ray.parquet", "--ray", "--workers", 2, "--shard", 8]
    code, out, err = cli(*embed, "--strict")
    assert (code, out, err.count("\n")) == (2, "", 1) and "bad-" in err and "cannot be decoded" in err
    code, _, err = cli("search", "3.jpg", "-e", "fake.cgd", "--index", "ray.parquet")
    assert code == 2 and "lacks" in err
    assert cli(*embed)[0] == 0
    code, _, err = cli(*embed, "--strict")
    assert (code, err.count("\n")) == (2, 1) and "bad-7.jpg" in err


def test_only_bad_pictures_make_no_index(cli, ray_of_two, desk):
    Path("bad").mkdir()
    for number in range(3):
        (Path("bad") / f"{number}.jpg").write_bytes(b"no picture")
    code, _, err = cli("embed", "bad", "-e", "fake.cgd", "-o", "ray.parquet", "--ray", "--shard", 2)
    assert code == 2 and "none of the 3 pictures could be read (bad/0.jpg cannot be decoded" in err.splitlines()[-1]


def test_what_ray_cannot_load_is_one_sentence(cli, ray_of_two, desk, pictures):
    write_fake_engine(Path("broken.cgd"), backend="onnxruntime")
    code, _, err = cli("embed", pictures, "-e", "broken.cgd", "-o", "ray.parquet", "--ray")
    assert (code, err.count("\n")) == (2, 1) and "ONNX Runtime cannot load the model" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-o o.parquet --workers 2", "--workers is for --ray; add --ray, or leave it out."),
        ("-o o.parquet --shard 8", "--shard is for --ray"),
        ("-o o.parquet --ray-address auto", "--ray-address is for --ray"),
        ("-o o.parquet --ray --pca 4", "--pca needs every descriptor at once"),
        ("-o o.npy --ray", "o.npy does not end in .parquet"),
        ("-o o.parquet --ray --descriptor-dtype int4", "'int4' is unknown"),
        ("-o full.parquet --ray", "full.parquet holds other files"),
        ("-o file.parquet --ray", "file.parquet is a file"),
        ("-o other.parquet --ray", "other.parquet holds another run, whose pictures is 60 and not 30"),
        (
            "-o o.parquet --ray --workers 99 --threads 1",
            "99 workers of 1 threads do not fit on 2 cores; ask for fewer.",
        ),
        ("-o o.parquet --ray --threads 99", "no node of this Ray has room for an engine with 99 threads"),
        ("-o o.parquet --ray --ray-address auto", "is already connected to Ray; leave auto out."),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(cli, ray_of_two, boxed, pictures, options, message):
    Path("full.parquet").mkdir()
    Path("full.parquet/holidays.txt").touch()
    Path("file.parquet").touch()
    run = _run(boxed, read_engine("fake.cgd"), RayOptions(shard=1024))
    Shards(Path("other.parquet"), run).begin()
    before = listing(Path())
    code, out, err = cli("embed", pictures, "-e", "fake.cgd", *options.split())
    assert (code, out) == (2, "")
    assert err.startswith("cgd-deploy: ") and err.endswith(".\n") and err.count("\n") == 1
    assert message in err
    assert listing(Path()) == before


def test_without_ray_it_says_what_to_install(cli, desk, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = cli("embed", pictures, "-e", "fake.cgd", "-o", "o.parquet", "--ray")
    assert (code, err) == (2, f"cgd-deploy: ray is not installed; run `{install_line('ray')}`.\n")
    assert not Path("o.parquet").exists()


def node(cpu: float, gpu: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpu, "memory": 1e9, **({"GPU": gpu} if gpu else {})}}


@pytest.mark.parametrize(
    ("nodes", "workers", "threads", "on_gpu", "placed"),
    [
        ([node(2)], None, None, False, (1, 2)),
        ([node(2)], 2, None, False, (2, 1)),
        ([node(16)], None, 4, False, (4, 4)),
        ([node(16), node(16), node(16, alive=False)], None, None, False, (2, 16)),
        ([node(16), node(4)], None, 4, False, (5, 4)),
        ([node(16), node(4)], 5, None, False, (5, 4)),
        ([node(16, 2), node(16, 2), node(8)], None, None, True, (4, 8)),
        ([node(16, 2)], 1, 4, True, (1, 4)),
    ],
)
def test_workers_are_as_many_as_fit(nodes, workers, threads, on_gpu, placed):
    assert _places(nodes, workers, threads, on_gpu, may_grow=False) == placed


@pytest.mark.parametrize(
    ("nodes", "workers", "threads", "on_gpu", "message"),
    [
        ([node(2), node(2)], None, 3, False, "room for an engine with 3 threads; the largest has 2 cores"),
        ([node(64)], None, None, True, "room for an engine with 64 threads and a GPU"),
        ([node(4, 1)], 2, 1, True, "2 workers of 1 threads"),
    ],
)
def test_what_ray_would_wait_for_without_end_is_refused(nodes, workers, threads, on_gpu, message):
    with pytest.raises(InputError, match=message):
        _places(nodes, workers, threads, on_gpu, may_grow=False)


def test_a_cluster_that_grows_may_be_asked_for_more_than_it_has():
    assert _places([node(4)], 100, 4, False, may_grow=True) == (100, 4)


@pytest.fixture
def worker(ray_of_two, boxed) -> Callable[[], dict]:
    """What a worker tells of the first eight boxes."""
    file = read_engine("fake.cgd")
    shards = Shards(Path("ray.parquet").absolute(), _run(boxed, file, RayOptions(shard=8)))
    shards.begin()
    task = json.dumps({"first": 0, "names": boxed.names[:8], "boxes": boxed.boxes[:8]})

    def call(**changes: object) -> dict:
        job = replace(_job(boxed, RayOptions(batch_size=4), 1, strict=False), **changes)
        [told] = Worker(ray.put(file), shards, job)({"task": [task]})["told"]
        return json.loads(told)

    call.shards = shards
    return call


def test_a_shard_that_kills_its_workers_is_given_up(worker):
    """Ray would start workers for ever."""
    for _ in range(TRIES):
        worker.shards.begin_shard(range(0, 8))
    told = worker()
    assert told["error"] == "InputError"
    assert told["message"].startswith(f"{TRIES} workers died over pictures 0 to 7; look there for a file")


def test_a_shard_that_another_worker_died_over_is_done(worker):
    worker.shards.begin_shard(range(0, 8))
    told = worker()
    assert (told["error"], told["tries"], [number for number, _ in told["left_out"]]) == (None, 2, [7])


@pytest.mark.parametrize("change", ["content", "size", "gone", "paths", "footer"])
def test_a_shard_is_right_for_the_files_it_was_made_of(worker, boxed, change):
    worker()
    there = worker.shards.done()
    assert _up_to_date(there, boxed, "relative") == [range(0, 8)]
    before = Path("3.jpg").stat()
    if change == "content":
        os.utime("3.jpg", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "size":
        Path("3.jpg").write_bytes(b"longer" * 10_000)
        os.utime("3.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "gone":
        Path("3.jpg").unlink()
    elif change == "footer":  # of release 0.1.0
        there = {part: replace(shard, files_sha256=None) for part, shard in there.items()}
    asked = "absolute" if change == "paths" else "relative"
    assert _up_to_date(there, boxed, asked) == []


@pytest.mark.parametrize("paths_are", ["relative", "absolute"])
def test_pictures_of_shards_are_found_from_another_folder(worker, monkeypatch, paths_are):
    here = Path.cwd()
    worker(paths_are=paths_are)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    [shard] = (here / "ray.parquet").glob("*.parquet")
    assert [Path(path) for path in read_index(shard).paths[:3]] == [here / f"{number}.jpg" for number in range(3)]


def test_workers_keep_the_limits_of_the_driver(worker):
    left_out = worker(limits=Limits(pixels=64))["left_out"]
    assert len(left_out) == 8 and "the limit pixels is 64" in left_out[0][1]


@pytest.mark.parametrize(("threads", "batch", "size"), [(1, None, 8), (3, 2, 2)])
def test_a_worker_decodes_in_its_share_of_threads_and_chooses_its_batch(worker, monkeypatch, threads, batch, size):
    asked = []
    batches = engine.batches
    monkeypatch.setattr(
        engine,
        "batches",
        lambda images, spec, *more: asked.append(more[:2]) or batches(images, spec, *more),
    )
    assert worker(threads=threads, batch=batch)["error"] is None
    assert asked == [(size, threads)]


def test_a_node_with_another_release_is_told(worker):
    assert "has cgd-deploy" in (told := worker(release="0.0.7"))["message"] and told["error"] == "InputError"


def test_a_node_without_the_folder_is_told(worker):
    told = worker(folder="/no/such/folder")
    assert "has no /no/such/folder, where . starts (No such file or directory)" in told["message"]


def command(*options: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "cgd_deploy", "embed", "many", "-e", "fake.cgd", *map(str, options), "--json"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for it, but not for a process that has ended."""
    ends = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < ends, process.communicate()
        time.sleep(0.002)


def many(count: int, size: int) -> None:
    """``count`` pictures, no two alike."""
    Path("many").mkdir()
    ground = np.asarray(draw(1, 1).resize((size, size)))
    for number in range(count):
        pixels = ground.copy()
        pixels[: size // 2, : size // 2] = (number % 256, number // 8, 90)
        Image.fromarray(pixels).save(f"many/{number:05}.png", compress_level=1)


def shards_there() -> list[Path]:
    return sorted(Path("ray.parquet").glob("*.parquet"))


def worker_at_it() -> int | None:
    """A process that has begun a shard within the last few milliseconds, of many that it takes."""
    for tries in list(Path("ray.parquet").glob(".*.tries")):
        with suppress(OSError):  # the shard is whole
            words = tries.read_text().split()
            if len(words) == 2 and time.time() - tries.stat().st_mtime < 0.01:
                return int(words[1])
    return None


@pytest.mark.slow
def test_2000_pictures_and_a_worker_killed_in_the_middle(cli, desk):
    many(2000, 80)
    assert cli("embed", "many", "-e", "fake.cgd", "-o", "local.npy")[0] == 0
    process = command("-o", "ray.parquet", "--ray", "--workers", 2, "--shard", 100)

    def killed() -> bool:
        worker = worker_at_it() if len(shards_there()) >= 4 else None
        if worker:
            os.kill(worker, signal.SIGKILL)
        return worker is not None

    until(killed, process)
    assert len(shards_there()) < 16, "in the middle"
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    facts = json.loads(out)
    assert (facts["pictures"], facts["shards"], facts["left_out"]) == (2000, 20, [])
    assert facts["killed"] == 1 and err.startswith("a worker died over pictures ") and err.count("\n") == 1, err
    index, local = read_index("ray.parquet"), read_index("local.npy")
    assert len(set(index.paths)) == 2000 and len(np.unique(index.stored, axis=0)) == 2000
    assert same(index, local)
    assert all(name == "_run.json" or name.endswith(".parquet") for name in os.listdir("ray.parquet"))


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(cli, desk):
    many(600, 80)
    assert cli("embed", "many", "-e", "fake.cgd", "-o", "local.npy")[0] == 0
    options = ["-o", "ray.parquet", "--ray", "--workers", 2, "--shard", 10]
    process = command(*options)
    until(lambda: len(shards_there()) >= 5, process)
    process.kill()
    process.communicate()
    before = {shard: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in shards_there()}
    assert 5 <= len(before) < 60
    again = command(*options)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    facts = json.loads(out)
    assert (facts["pictures"], facts["shards"]) == (600, 60)
    assert len(before) <= facts["resumed"] < 60  # a worker may outlive its driver for a shard
    assert {shard: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in before} == before
    assert same(read_index("ray.parquet"), read_index("local.npy"))


@pytest.mark.parametrize(
    ("backend", "precision", "on_gpu"),
    [("onnxruntime", "fp32", False), ("onnxruntime", "tf32", True), ("tensorrt", "fp32", True)],
)
def test_workers_take_a_gpu_where_the_engine_needs_one(tmp_path, backend, precision, on_gpu):
    path = write_fake_engine(tmp_path / "e.cgd", backend=backend, precision=Precision(precision))
    assert _on_gpu(read_engine(path)) is on_gpu
