"""The bench on fake engines: its JSON, its arithmetic by plain loops, its gate, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import InputError
from cgd_deploy.files import sha256_bytes, sha256_file
from cgd_deploy.hardware.cpu import CpuClock
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.quality import bench as module
from cgd_deploy.quality import contestants
from cgd_deploy.quality.bench import BenchOptions, gate
from cgd_deploy.quality.comparison import compact_forms
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.quality.report import warnings
from cgd_deploy.quality.significance import paired_drop
from cgd_deploy.runtime import backends, compatibility
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.cuda.driver import Device
from cgd_deploy.runtime.engine import Engine, load
from cgd_deploy.runtime.enginefile import read_engine, write_engine
from cgd_deploy.search.compact import fit
from cgd_deploy.spec import Precision

pytestmark = pytest.mark.usefixtures("noisy")


made: list[str] = []
"""The devices that models in torch were made on."""


class FakeTorch(FakeBackend):
    """A checkpoint's model without torch."""

    evaluation: Evaluation | None = None
    spec = FAKE_SPEC

    cudnn: int | None = None

    def __init__(self, checkpoint: Path, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__(json.dumps({"dim": FAKE_SPEC.dim}).encode())
        made.append(device)
        self.cudnn = 92400 if device == "cuda" else None

    def run_fp16(self, images: np.ndarray) -> np.ndarray:
        return self.run(images)

    run_tf32 = run_fp16


@pytest.fixture
def checkpoint(tmp_path, monkeypatch, picture_list) -> Path:
    """A file that stands for a checkpoint, whose test pictures are ``picture_list``."""
    monkeypatch.setattr(module, "TorchBackend", FakeTorch)
    monkeypatch.setattr(FakeTorch, "evaluation", Evaluation(picture_list))
    (tmp_path / "ckpt.pt").write_bytes(b"weights")
    return tmp_path / "ckpt.pt"


@pytest.fixture
def exact(tmp_path, checkpoint) -> Path:
    """An FP32 engine made from ``checkpoint``."""
    source = {"checkpoint": str(checkpoint), "checkpoint_sha256": sha256_file(checkpoint)}
    return write_fake_engine(tmp_path / "exact.cgd", source=source)


@pytest.fixture
def hurt(tmp_path) -> Path:
    return write_fake_engine(tmp_path / "hurt.cgd", noise=2.0, backend="noisy", precision=Precision.INT8)


def bench(paths: list[Path], on_progress: OnProgress = lambda what, done: None, **options: Any) -> Any:
    return module.bench(paths, BenchOptions(**options), on_progress)


def keys(value: object) -> object:
    """The nested names of a JSON value."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(item) for item in value[:1]] if isinstance(value, list) else None


def test_the_result_has_the_keys_of_the_contract_and_no_others(exact):
    result, _ = bench([exact], seconds=0, batch_sizes=(2,))
    recall = dict.fromkeys(("1", "2", "4", "8"))
    assert result["schema"] == 1
    assert set(result) == {"schema", "notes", "environment", "queries", "reference", "engines", "gate", "left_out"}
    latency = {"latency_ms": dict.fromkeys(("p50", "p95", "p99"))}
    speed = {**latency, **dict.fromkeys(("images_per_second", "speedup_vs_torch"))}
    assert keys(result["reference"]) == {
        "backend": None,
        "precision": None,
        "recall": recall,
        "runs": [{"precision": None, "batch": None, "threads": None, **speed}],
    }
    assert keys(result["environment"]["load"]) == dict.fromkeys(("busy", "cores", "others", "steal"))
    assert keys(result["engines"]) == [
        {
            **dict.fromkeys(("path", "backend", "precision", "batch", "threads", "streams")),
            **speed,
            "bytes": None,
            "recall": recall,
            "recall_drop_pp": recall,
            "recall_drop_interval_pp": {k: [None] for k in recall},
            "cross_recall_drop_pp": recall,
            "overlap_at_10": None,
            "overlap_at_10_interval": [None],
            "cosine": {"min": None, "mean": None},
            "rank_flips": None,
            "compact": [],
            "stale": None,
        }
    ]
    assert set(result["gate"]) == {"passed", "limits", "confident", "failures"}
    assert json.loads(json.dumps(result)) == result


def test_an_engine_on_cuda_is_compared_with_torch_on_cuda(exact, monkeypatch):
    """Eager torch in FP32 and in FP16, on the same device, with the GPU in the JSON."""
    made.clear()
    facts = {"name": "NVIDIA H100", "compute_capability": "9.0", "cuda": "13.0", "driver": "580.159.03"}
    monkeypatch.setattr(module, "gpu_facts", lambda: facts)
    result, _ = bench([exact], seconds=0, batch_sizes=(1, 2))
    assert made == ["cpu"] and "gpu" not in result["environment"]
    assert [run["precision"] for run in result["reference"]["runs"]] == ["fp32", "fp32"]
    monkeypatch.setattr(Engine, "device", "cuda")
    result, _ = bench([exact], seconds=0, batch_sizes=(1, 2))
    assert made == ["cpu", "cuda"]
    assert (result["environment"]["gpu"], result["environment"]["cudnn"]) == (facts, 92400)
    runs = [(run["precision"], run["batch"]) for run in result["reference"]["runs"]]
    assert runs == [("fp32", 1), ("fp32", 2), ("fp16", 1), ("fp16", 2)]
    assert [run["speedup_vs_torch"] for run in result["reference"]["runs"][:2]] == [1.0, 1.0]


def test_a_tf32_engine_is_compared_with_torch_in_tf32_too(exact, monkeypatch):
    monkeypatch.setattr(module, "gpu_facts", lambda: {})
    monkeypatch.setattr(Engine, "device", "cuda")
    file = read_engine(exact)
    monkeypatch.setattr(compatibility, "find_device", lambda: Device(name="L4", compute_capability="8.9", cuda="13.0"))
    on_cuda = lambda payload, **options: FakeBackend(payload)  # noqa: E731
    monkeypatch.setitem(backends.BACKENDS, "fake", {"cpu": FakeBackend, "cuda": on_cuda})
    write_engine(exact, replace(file.manifest, precision=Precision.TF32), file.payload, *file.golden)
    result, _ = bench([exact], seconds=0, batch_sizes=(1,))
    assert [run["precision"] for run in result["reference"]["runs"]] == ["fp32", "tf32", "fp16"]
    assert [run["precision"] for run in result["engines"]] == ["tf32"]
    assert result["gate"]["limits"] == {"tf32": {"max_recall_drop_pp": 0.2, "min_overlap_at_10": 0.98}}


def test_engines_of_two_devices_are_refused(exact, hurt, monkeypatch):
    monkeypatch.setattr(
        Engine, "device", property(lambda engine: "cuda" if engine.manifest.backend == "noisy" else "cpu")
    )
    refused("the engines run on cpu and on cuda; bench engines of one device", [exact, hurt])


def test_what_a_run_says_of_its_engine(exact):
    result, _ = bench([exact], seconds=0, batch_sizes=(1, 3), threads=2)
    assert [run["batch"] for run in result["engines"]] == [1, 3]
    run = result["engines"][0]
    assert (run["path"], run["backend"], run["precision"]) == (str(exact), "fake", "fp32")
    assert (run["bytes"], run["threads"], run["streams"]) == (exact.stat().st_size, 2, 1)
    assert (result["reference"]["backend"], result["reference"]["precision"]) == ("torch", "fp32")


def test_the_environment_says_what_was_measured_on_what(exact, picture_list):
    facts = bench([exact], seconds=0, batch_sizes=(2,))[0]["environment"]
    assert facts["pictures"] == 30 and facts["pictures_sha256"] == picture_list.sha256
    assert facts["timed_calls"] == {"2": 12}
    assert facts["packages"]["numpy"] == np.__version__


def test_an_engine_that_is_the_reference_loses_nothing(exact):
    [run] = bench([exact], seconds=0, batch_sizes=(1,))[0]["engines"]
    assert set(run["recall_drop_pp"].values()) == set(run["cross_recall_drop_pp"].values()) == {0.0}
    assert (run["overlap_at_10"], run["rank_flips"]) == (1.0, 0)
    assert run["cosine"]["min"] == pytest.approx(1, abs=1e-5)


def nearest(queries: np.ndarray, gallery: np.ndarray) -> list[list[int]]:
    """The ten most similar others of each, by sorting."""
    found = []
    for i, query in enumerate(queries):
        order = sorted((-float(query @ other), j) for j, other in enumerate(gallery) if j != i)
        found.append([j for _, j in order[:10]])
    return found


def test_retrieval_by_loops(exact, hurt, picture_list):
    result, _ = bench([exact, hurt], seconds=0, batch_sizes=(1,))
    run = result["engines"][1]
    pixels = np.stack([preprocess(path, FAKE_SPEC) for path in picture_list.paths])
    with load(exact) as one, load(hurt) as other:
        before, after = one.embed(pixels), other.embed(pixels)
    classes = picture_list.classes
    lists = {"before": nearest(before, before), "after": nearest(after, after), "cross": nearest(after, before)}

    def recall(name: str, k: int) -> float:
        hits = [any(classes[j] == classes[i] for j in row[:k]) for i, row in enumerate(lists[name])]
        return sum(hits) / len(hits)

    for k in (1, 2, 4, 8):
        before_k, after_k, cross_k = (recall(name, k) for name in ("before", "after", "cross"))
        assert result["reference"]["recall"][str(k)] == pytest.approx(before_k)
        assert run["recall"][str(k)] == pytest.approx(after_k)
        assert run["recall_drop_pp"][str(k)] == pytest.approx(100 * (before_k - after_k), abs=1e-3)
        assert run["cross_recall_drop_pp"][str(k)] == pytest.approx(100 * (before_k - cross_k), abs=1e-3)
        hits = (
            np.array([any(classes[j] == classes[i] for j in row[:k]) for i, row in enumerate(lists[name])])
            for name in ("before", "after")
        )
        assert run["recall_drop_interval_pp"][str(k)] == list(paired_drop(*hits)[1:])
    low, high = run["recall_drop_interval_pp"]["1"]
    assert low < run["recall_drop_pp"]["1"] < high
    pairs = list(zip(lists["after"], lists["before"], strict=True))
    shared = [len(set(a) & set(b)) / 10 for a, b in pairs]
    assert run["overlap_at_10"] == pytest.approx(np.mean(shared), abs=1e-5)
    low, high = run["overlap_at_10_interval"]
    margin = 1.96 * np.std(shared) / np.sqrt(len(shared))
    assert (low, high) == pytest.approx((np.mean(shared) - margin, np.mean(shared) + margin), abs=0.3 * margin)
    assert run["rank_flips"] == sum(a[0] != b[0] for a, b in pairs)
    similar = [float(a @ b) for a, b in zip(after, before, strict=True)]
    assert run["cosine"]["min"] == pytest.approx(min(similar), abs=1e-5)
    assert run["cosine"]["mean"] == pytest.approx(sum(similar) / 30, abs=1e-5)
    assert run["recall_drop_pp"]["1"] > 0 and run["overlap_at_10"] < 0.9 and run["rank_flips"] > 0  # it is really hurt


def test_the_compact_entries_have_the_keys_of_the_contract(exact):
    result, _ = bench([exact], seconds=0, batch_sizes=(1, 2), descriptor_dtypes=["int8"], pcas=[4, 8, 4])
    recall = dict.fromkeys(("1", "2", "4", "8"))
    assert json.loads(json.dumps(result)) == result
    for run in result["engines"]:
        assert keys(run["compact"]) == [
            {
                **dict.fromkeys(("descriptor_dtype", "pca", "bytes_per_descriptor")),
                "recall": recall,
                "recall_drop_pp": recall,
                "recall_drop_interval_pp": {k: [None] for k in recall},
                "overlap_at_10": None,
                "overlap_at_10_interval": [None],
            }
        ]
        forms = [(form["descriptor_dtype"], form["pca"], form["bytes_per_descriptor"]) for form in run["compact"]]
        assert forms == [("int8", 4, 4), ("int8", 8, 8)]


@pytest.mark.parametrize(
    ("dtypes", "pcas", "forms"),
    [
        ([], [], []),
        (["int8"], [], [("int8", None)]),
        ([], [8], [("float32", 8)]),
        (["int8", "binary"], [8, 4], [("int8", 8), ("int8", 4), ("binary", 8), ("binary", 4)]),
        (["int8", "int8"], [], [("int8", None)]),
    ],
)
def test_every_dtype_is_measured_with_every_pca(dtypes, pcas, forms):
    assert compact_forms(dtypes, pcas) == forms


@pytest.mark.parametrize(("dtype", "pca"), [("int8", None), ("binary", None), ("float16", 6), ("binary", 6)])
@pytest.mark.parametrize("apart", [False, True])
def test_compact_galleries_by_loops(exact, hurt, picture_list, monkeypatch, dtype, pca, apart):
    """Queries float and the gallery not, against the reference's float32; ``apart``: as In-shop, with a gallery."""
    roles = tuple(number % 5 > 0 for number in range(30)) if apart else None
    monkeypatch.setattr(FakeTorch, "evaluation", Evaluation(picture_list, roles))
    pcas = [] if pca is None else [pca]
    result, _ = bench([exact, hurt], seconds=0, batch_sizes=(1,), descriptor_dtypes=[dtype], pcas=pcas)
    [measured] = result["engines"][1]["compact"]
    pixels = np.stack([preprocess(path, FAKE_SPEC) for path in picture_list.paths])
    with load(exact) as one, load(hurt) as other:
        before, after = one.embed(pixels), other.embed(pixels)
    queries = [i for i in range(30) if not apart or i % 5 == 0]
    gallery = [i for i in range(30) if not apart or i % 5 > 0]
    form = fit(after[gallery], dtype, pca)
    kept, asked = form.restore(form.store(after)), form.project(after)

    def search(asking: np.ndarray, searched: np.ndarray) -> list[list[int]]:
        orders = [sorted((-float(asking[i] @ searched[j]), j) for j in gallery if j != i) for i in queries]
        return [[j for _, j in order[:10]] for order in orders]

    expected, found = search(before, before), search(asked, kept)
    classes = picture_list.classes

    def hits(lists: list[list[int]], k: int) -> np.ndarray:
        return np.array([any(classes[j] == classes[i] for j in row[:k]) for i, row in zip(queries, lists, strict=True)])

    for k in (1, 2, 4, 8):
        first, second = hits(expected, k), hits(found, k)
        assert measured["recall"][str(k)] == pytest.approx(second.mean())
        assert measured["recall_drop_pp"][str(k)] == pytest.approx(100 * (first.mean() - second.mean()), abs=1e-3)
        assert measured["recall_drop_interval_pp"][str(k)] == list(paired_drop(first, second)[1:])
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)]
    assert measured["overlap_at_10"] == pytest.approx(np.mean(shared), abs=1e-5)
    assert measured["bytes_per_descriptor"] == form.bytes_per_descriptor


def test_float32_without_pca_measures_what_the_engine_does(exact, hurt):
    result, _ = bench([exact, hurt], seconds=0, batch_sizes=(1,), descriptor_dtypes=["float32"])
    for run in result["engines"]:
        [form] = run["compact"]
        assert {name: form[name] for name in form if name in run} == {name: run[name] for name in form if name in run}


def test_the_gate_does_not_look_at_compact_forms(exact):
    result, _ = bench([exact], seconds=0, batch_sizes=(1,), descriptor_dtypes=["binary"], pcas=[1])
    [form] = result["engines"][0]["compact"]
    assert form["overlap_at_10"] < 0.9
    assert result["gate"]["passed"]


def test_compact_forms_of_pictures_without_classes(exact, pictures, tmp_path):
    for number, path in enumerate(sorted(pictures.rglob("*.jpg"))):
        (tmp_path / f"{number:02}.jpg").write_bytes(path.read_bytes())
    result, _ = bench([exact], data=tmp_path, seconds=0, batch_sizes=(1,), descriptor_dtypes=["int8"])
    [form] = result["engines"][0]["compact"]
    assert form["recall"] == form["recall_drop_pp"] == form["recall_drop_interval_pp"] == {}
    assert form["overlap_at_10"] > 0.8


def test_speed_from_given_seconds(exact, monkeypatch):
    def taken(calls, seconds, on_round):
        return {title: [0.4, 0.4, 0.1] if title.startswith("reference") else [0.02, 0.04, 0.5] for title in calls}

    monkeypatch.setattr(module, "interleaved", taken)
    result, _ = bench([exact], seconds=0, batch_sizes=(1, 8))
    one, eight = result["engines"]
    assert one["latency_ms"] == {"p50": 40.0, "p95": None, "p99": None}
    assert [(run["batch"], run["latency_ms"]["p50"]) for run in result["reference"]["runs"]] == [(1, 400), (8, 400)]
    assert [run["images_per_second"] for run in result["reference"]["runs"]] == [2.5, 20.0]
    assert [run["speedup_vs_torch"] for run in result["reference"]["runs"]] == [1.0, 1.0]
    assert (one["images_per_second"], eight["images_per_second"]) == (25.0, 200.0)
    assert one["speedup_vs_torch"] == eight["speedup_vs_torch"] == 10.0


@pytest.mark.parametrize(("others", "busy"), [(1.5, True), (0.0, False)])
def test_the_load_of_the_machine_is_that_of_the_timing(exact, monkeypatch, others, busy):
    """For four seconds, other processes use ``others`` of two cores, and this process the rest."""
    clocks = iter(
        [
            CpuClock(wall=10.0, ours=3.0, all=20.0, stolen=0.0, cores=2),
            CpuClock(wall=14.0, ours=3.0 + 4 * (2 - others), all=28.0, stolen=0.0, cores=2),
        ]
    )
    monkeypatch.setattr(module, "cpu_clock", lambda: next(clocks))
    result, _ = bench([exact], seconds=0, batch_sizes=(1, 2), threads=2)
    assert result["environment"]["load"] == {"busy": busy, "cores": 2, "others": others, "steal": 0.0}
    assert result["gate"]["passed"]


def test_every_contestant_is_timed_in_one_interleaved_run(exact, hurt, monkeypatch):
    seen = []

    def taken(calls, seconds, on_round):
        seen.append((len(calls), seconds))
        for call in calls.values():
            assert call().shape[1] == 24
        return {title: [1.0] for title in calls}

    monkeypatch.setattr(module, "interleaved", taken)
    bench([exact, hurt], seconds=7, batch_sizes=(1, 4))
    assert seen == [(3, 7), (3, 7)]


def test_progress_names_what_is_done(exact):
    told = []
    bench([exact], seconds=0, batch_sizes=(2,), on_progress=lambda what, done: told.append((what, done)))
    assert ("embedding", 1.0) in told and ("timing batch 2", 1.0) in told
    bench([exact], seconds=0, batch_sizes=(2,), pcas=[3, 4], on_progress=lambda what, done: told.append((what, done)))
    assert told[-2:] == [("compact forms of exact: fake fp32", done) for done in (0.5, 1.0)]


def a_run(path: str = "e.cgd", precision: str = "int8", drop: float | None = 0.0, overlap: float = 1.0) -> dict:
    return {
        "path": path,
        "precision": precision,
        "recall_drop_pp": {} if drop is None else {"1": drop},
        "overlap_at_10": overlap,
    }


@pytest.mark.parametrize(
    ("run", "passes"),
    [
        (a_run(drop=1.0, overlap=0.8), True),
        (a_run(drop=1.01), False),
        (a_run(overlap=0.799), False),
        (a_run(drop=-5.0), True),
        (a_run(drop=float("nan")), False),
        (a_run(overlap=float("nan")), False),
        (a_run(precision="fp32", drop=0.05, overlap=0.99), True),
        (a_run(precision="fp32", drop=0.06), False),
        (a_run(precision="fp16", drop=0.2, overlap=0.98), True),
        (a_run(precision="fp16", overlap=0.97), False),
        (a_run(drop=None, overlap=0.9), True),
        (a_run(drop=None, overlap=0.7), False),
    ],
)
def test_the_gate(run, passes):
    verdict = gate([run])
    assert verdict["passed"] is passes
    assert len(verdict["failures"]) == (not passes)
    assert passes or "e.cgd" in verdict["failures"][0]


def test_limits_of_the_caller_replace_the_usual_ones():
    assert gate([a_run(drop=3.0)], {"max_recall_drop_pp": 5.0})["passed"]
    strict = gate([a_run(overlap=0.9)], {"min_overlap_at_10": 0.95})
    assert not strict["passed"]
    assert strict["limits"]["int8"] == {"max_recall_drop_pp": 1.0, "min_overlap_at_10": 0.95}


@pytest.mark.parametrize(
    ("low", "high_drop", "told"),
    [
        (0.8, 1.0, []),
        (0.79, 1.0, ["overlap@10 is 0.790 at the worse end of the 95 % interval, wanted 0.8"]),
        (0.8, 1.2, ["recall@1 drops 1.20 pp at the worse end of the 95 % interval, allowed 1.0 pp"]),
        (0.8, None, []),
    ],
)
def test_a_confident_gate_judges_the_worse_ends(low, high_drop, told):
    intervals = {} if high_drop is None else {"1": [-1.0, high_drop]}
    run = {
        **a_run(drop=None if high_drop is None else 0.0, overlap=0.9),
        "overlap_at_10_interval": [low, 0.99],
        "recall_drop_interval_pp": intervals,
    }
    assert gate([run])["passed"] and gate([run])["confident"] is False
    verdict = gate([run], confident=True)
    assert verdict["failures"] == [f"e.cgd: {line}" for line in told]
    assert verdict["passed"] is not bool(told) and verdict["confident"] is True


def test_the_gate_judges_each_engine_once():
    runs = [a_run("a"), a_run("b", drop=9.0, overlap=0.1), a_run("b", drop=9.0, overlap=0.1)]
    assert len(gate(runs)["failures"]) == 2


def test_a_hurt_engine_fails_the_gate_of_the_bench(exact, hurt):
    result, _ = bench([exact, hurt], seconds=0, batch_sizes=(1,))
    assert not result["gate"]["passed"]
    assert all(str(hurt) in failure for failure in result["gate"]["failures"])


def test_pictures_without_classes_are_compared_by_neighbours_alone(exact, hurt, pictures, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(pictures.rglob("*.jpg"))):
        (flat / f"{number:02}.jpg").write_bytes(path.read_bytes())
    result, rows = bench([exact, hurt], data=flat, seconds=0, batch_sizes=(1,))
    assert result["reference"]["recall"] == {}
    for run in result["engines"]:
        assert run["recall"] == run["recall_drop_pp"] == run["cross_recall_drop_pp"] == {}
        assert run["recall_drop_interval_pp"] == {}
    assert result["engines"][0]["overlap_at_10"] == 1.0
    assert len(result["gate"]["failures"]) == 1  # the hurt one, for its overlap
    assert rows[0].label is None and all(n.correct is None for strip in rows[0].results.values() for n in strip)


def lonely(picture_list: ImageList, alone: int, cameras: tuple[str, ...] | None = None) -> Evaluation:
    """All pictures; the first ``alone`` of them each in a class of its own."""
    classes = (*(f"alone-{n}" for n in range(alone)), *(picture_list.classes or ())[alone:])
    return Evaluation(replace(picture_list, classes=classes), cameras=cameras)


@pytest.mark.parametrize("alone", [1, 3])
def test_queries_that_nobody_can_answer_are_left_out_of_recall_by_loops(exact, hurt, picture_list, monkeypatch, alone):
    evaluation = lonely(picture_list, alone)
    monkeypatch.setattr(FakeTorch, "evaluation", evaluation)
    result, _ = bench([exact, hurt], seconds=0, batch_sizes=(1,))
    assert result["queries"] == {"asked": 30, "unanswerable": alone}
    run = result["engines"][1]
    pixels = np.stack([preprocess(path, FAKE_SPEC) for path in picture_list.paths])
    with load(exact) as one, load(hurt) as other:
        lists = [nearest(rows, rows) for rows in (one.embed(pixels), other.embed(pixels))]
    classes = evaluation.images.classes
    hits = [[classes[row[0]] == classes[i] for i, row in enumerate(rows)][alone:] for rows in lists]
    assert result["reference"]["recall"]["1"] == pytest.approx(np.mean(hits[0]))
    assert run["recall"]["1"] == pytest.approx(np.mean(hits[1]))
    assert run["recall_drop_pp"]["1"] == pytest.approx(100 * (np.mean(hits[0]) - np.mean(hits[1])), abs=1e-3)
    assert run["recall_drop_interval_pp"]["1"] == list(paired_drop(*map(np.array, hits))[1:])
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)]
    assert run["overlap_at_10"] == pytest.approx(np.mean(shared), abs=1e-5)  # of all queries


def test_neighbours_of_one_camera_and_class_are_compared_by_nobody(exact, hurt, picture_list, monkeypatch):
    evaluation = lonely(picture_list, 0, tuple("12"[n % 5 > 1] for n in range(30)))
    monkeypatch.setattr(FakeTorch, "evaluation", evaluation)
    result, rows = bench([exact, hurt], seconds=0, batch_sizes=(1,))
    assert result["queries"] == {"asked": 30, "unanswerable": 0}
    pixels = np.stack([preprocess(path, FAKE_SPEC) for path in picture_list.paths])
    classes, cameras = evaluation.images.classes, evaluation.cameras
    lists = []
    for path in (exact, hurt):
        with load(path) as engine:
            found = engine.embed(pixels)
        free = [
            [j for j in range(30) if j != i and (classes[j] != classes[i] or cameras[j] != cameras[i])]
            for i in range(30)
        ]
        lists.append([sorted(row, key=lambda j: -float(found[i] @ found[j]))[:10] for i, row in enumerate(free)])
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)]
    run = result["engines"][1]
    assert run["overlap_at_10"] == pytest.approx(np.mean(shared), abs=1e-5)
    assert run["recall"]["1"] == pytest.approx(
        np.mean([classes[row[0]] == classes[i] for i, row in enumerate(lists[1])])
    )
    assert run["rank_flips"] == sum(a[0] != b[0] for a, b in zip(*lists, strict=True))
    assert len(rows[0].results["reference: torch fp32"]) == 10


def test_where_no_query_can_be_answered_neighbours_are_compared_alone(exact, picture_list, monkeypatch):
    monkeypatch.setattr(FakeTorch, "evaluation", lonely(picture_list, 30))
    result, _ = bench([exact], seconds=0, batch_sizes=(1,))
    assert result["queries"] == {"asked": 30, "unanswerable": 30}
    assert result["reference"]["recall"] == result["engines"][0]["recall_drop_pp"] == {}
    assert result["gate"]["passed"]


def test_a_limit_on_recall_needs_recall(exact, picture_list, monkeypatch):
    monkeypatch.setattr(FakeTorch, "evaluation", lonely(picture_list, 30))
    with pytest.raises(InputError, match=r"none of the 30 queries .* has a picture of its class to find"):
        bench([exact], seconds=0, limits={"max_recall_drop_pp": 1.0})
    monkeypatch.setattr(FakeTorch, "evaluation", Evaluation(replace(picture_list, classes=None)))
    with pytest.raises(InputError, match="have no classes; recall needs them"):
        bench([exact], seconds=0, limits={"max_recall_drop_pp": 1.0})


def test_an_engine_may_be_the_reference(exact, hurt, pictures):
    result, _ = bench([hurt], data=pictures, reference=exact, seconds=0, batch_sizes=(1,))
    assert (result["reference"]["backend"], result["reference"]["precision"]) == ("fake", "fp32")
    assert result["engines"][0]["speedup_vs_torch"] is None
    assert result["reference"]["runs"][0]["speedup_vs_torch"] is None
    assert result["engines"][0]["overlap_at_10"] < 0.9


def test_an_engine_of_another_onnx_file_than_the_one_beside_it_is_named(exact, tmp_path):
    source = {**read_engine(exact).manifest.source, "onnx_sha256": sha256_bytes(b"old")}
    mixed = [write_fake_engine(tmp_path / folder / "e.cgd", source=source) for folder in ("a", "b")]
    (tmp_path / "a" / "model.onnx").write_bytes(b"old")
    (tmp_path / "b" / "model.onnx").write_bytes(b"new")
    result, _ = bench([exact, *mixed], seconds=0, batch_sizes=(1,))
    told = "made from another ONNX file than model.onnx beside it"
    assert [run["stale"] for run in result["engines"]] == [None, None, told]


def test_an_engine_of_another_checkpoint_is_named(exact, tmp_path):
    source = {"checkpoint": "gone.pt", "checkpoint_sha256": sha256_bytes(b"other")}
    other = write_fake_engine(tmp_path / "other.cgd", source=source)
    result, _ = bench([exact, other], seconds=0, batch_sizes=(1,))
    assert [run["stale"] for run in result["engines"]] == [None, "made from another checkpoint than the reference"]


def test_engines_of_one_name_in_two_folders_are_kept_apart(exact, tmp_path, pictures):
    paths = [
        write_fake_engine(tmp_path / folder / "reference.cgd", noise=noise, backend="noisy", precision=Precision.FP32)
        for folder, noise in (("a", 1e-6), ("b", 2.0))
    ]
    result, _ = bench([*paths, paths[0]], data=pictures, reference=exact, seconds=0, batch_sizes=(1,))
    good, bad = result["engines"]
    assert good["overlap_at_10"] == 1.0 and bad["overlap_at_10"] < 0.9


def test_rows_show_the_neighbours_of_each_engine_and_mark_what_changed(exact, hurt, picture_list):
    _, rows = bench([exact, hurt], seconds=0, batch_sizes=(1,), queries=8)
    assert 4 <= len(rows) <= 8
    pixels = np.stack([preprocess(path, FAKE_SPEC) for path in picture_list.paths])
    with load(hurt) as other, load(exact) as one:
        before, after = one.embed(pixels), other.embed(pixels)
    expected, found = nearest(before, before), nearest(after, after)
    for row in rows:
        query = picture_list.paths.index(row.query)
        assert row.label == picture_list.classes[query]
        reference, same, changed = row.results.values()
        assert next(iter(row.results)) == "reference: torch fp32"
        assert [n.path for n in reference] == [n.path for n in same]
        assert not any(n.changed for n in [*reference, *same])
        assert [picture_list.paths.index(n.path) for n in changed] == found[query]
        for neighbour, index in zip(changed, found[query], strict=True):
            assert neighbour.similarity == pytest.approx(float(after[query] @ after[index]), abs=1e-5)
            assert neighbour.label == picture_list.classes[index]
            assert neighbour.correct is (picture_list.classes[index] == picture_list.classes[query])
            assert neighbour.changed is (index not in expected[query])
    shared = [len(set(a) & set(b)) for a, b in zip(expected, found, strict=True)]
    assert shared[picture_list.paths.index(rows[0].query)] == min(shared)  # the worst comes first


def refused(message: str, *arguments: object, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bench(*arguments, seconds=0, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"descriptor_dtypes": ["int4"]}, "'int4' is unknown"),
        ({"pcas": [8, 25]}, "pca=25 .* 30 x 24 values; pass 1 to 24"),
        ({"pcas": [0]}, "pca=0 .*pass 1 to 24"),
    ],
)
def test_forms_that_cannot_be_are_refused_before_anything_is_embedded(exact, monkeypatch, options, message):
    monkeypatch.setattr(contestants, "batches", lambda *_: pytest.fail("it embedded"))
    refused(message, [exact], **options)


def test_an_engine_of_another_model_is_refused(exact, tmp_path):
    other = write_fake_engine(tmp_path / "other.cgd", replace(FAKE_SPEC, space_id="f" * 16))
    refused(r"other\.cgd describes space f{16}", [exact, other])


def test_a_checkpoint_that_is_gone_is_refused(exact, checkpoint):
    checkpoint.unlink()
    refused("--reference", [exact])


def test_an_engine_that_knows_no_checkpoint_is_refused(hurt, pictures):
    refused("--reference", [hurt], data=pictures)


def test_a_checkpoint_that_changed_is_refused(exact, checkpoint):
    checkpoint.write_bytes(b"trained on")
    refused("changed since", [exact])


def test_test_pictures_that_are_gone_are_refused(exact, monkeypatch, picture_list):
    gone = ImageList(picture_list.root / "moved", picture_list.names, picture_list.classes)
    monkeypatch.setattr(FakeTorch, "evaluation", Evaluation(gone))
    refused("all 30 test pictures are gone, .*--data", [exact])


def test_bad_test_pictures_are_left_out_and_listed(exact, monkeypatch, picture_list, tmp_path):
    """Every number is that of the good pictures alone."""
    names = list(picture_list.names)
    (tmp_path / "cut.jpg").write_bytes(picture_list.path(3).read_bytes()[:300])
    for number, name in ((3, str(tmp_path / "cut.jpg")), (8, "gone.jpg")):
        names[number] = name
    some_bad = ImageList(picture_list.root, tuple(names), picture_list.classes)
    monkeypatch.setattr(FakeTorch, "evaluation", Evaluation(some_bad))
    result, _ = bench([exact], seconds=0, batch_sizes=(1,))
    reasons = [(Path(picture["path"]).name, picture["reason"].split(" (")[0]) for picture in result["left_out"]]
    assert reasons == [("cut.jpg", "cannot be decoded"), ("gone.jpg", "does not exist; check the path.")]
    good = picture_list.subset(number for number in range(len(picture_list)) if number not in (3, 8))
    monkeypatch.setattr(FakeTorch, "evaluation", Evaluation(good))
    expected, _ = bench([exact], seconds=0, batch_sizes=(1,))
    assert expected["left_out"] == []
    for name in ("recall", "overlap_at_10", "cosine", "rank_flips"):
        assert result["engines"][0][name] == expected["engines"][0][name]
    assert result["environment"]["pictures"] == len(good)
    paths = f"{tmp_path / 'cut.jpg'}, {picture_list.root / 'gone.jpg'}"
    assert warnings(result)[-1] == f"2 test pictures were left out as unreadable: {paths}."
    monkeypatch.setattr(FakeTorch, "evaluation", Evaluation(some_bad))
    with pytest.raises(InputError, match=r"cut\.jpg cannot be decoded"):
        bench([exact], seconds=0, batch_sizes=(1,), strict=True)


def test_without_test_pictures_it_is_refused(exact, monkeypatch):
    monkeypatch.setattr(FakeTorch, "evaluation", None)
    refused("--data", [exact])


def test_too_few_pictures_are_refused(exact, pictures):
    refused("got 5 pictures; pass at least 12", [exact], data=pictures / "kind-0")


def test_a_bad_picture_stops_the_bench(exact, tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(b"no picture")
    refused(r"0\.jpg cannot be decoded", [exact], data=tmp_path)
