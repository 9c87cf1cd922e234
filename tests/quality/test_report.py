"""The HTML pages: what they say, that they stand alone, and that odd data does not break them."""

import base64
import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cgd_deploy.errors import InputError
from cgd_deploy.quality import report
from cgd_deploy.quality.report import Neighbour, QueryRow, headline, write_bench_report, write_search_page

TIMES = "\N{MULTIPLICATION SIGN}"
VOID = {"meta", "br", "link", "img", "input", "hr"}
REFERENCE = {"1": 0.8532, "2": 0.9}
RECALLS = ("recall", "recall_drop_pp", "recall_drop_interval_pp", "cross_recall_drop_pp")


class Page(HTMLParser):
    """Checks that tags nest; gathers attributes and visible text."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.words = [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    def all(self, name, class_=None):
        return [a for tag, a in self.tags if tag == name and (class_ is None or class_ in a.get("class", "").split())]


def engine(path="artifacts/model-int8.cgd", batch=1, rate=80.0, speedup=3.2, drop=0.25, precision="int8", **changes):
    return {
        "path": path,
        "backend": "onnxruntime",
        "precision": precision,
        "batch": batch,
        "threads": 2,
        "streams": 1,
        "latency_ms": {"p50": 12.34, "p95": 14.06, "p99": 20.0},
        "images_per_second": rate,
        "speedup_vs_torch": speedup,
        "bytes": 24_100_000,
        "recall": {k: v - drop / 100 for k, v in REFERENCE.items()},
        "recall_drop_pp": {"1": drop, "2": drop},
        "recall_drop_interval_pp": {"1": [drop - 0.5, drop + 0.3], "2": [drop, drop]},
        "cross_recall_drop_pp": {"1": -0.1, "2": 0.0},
        "overlap_at_10": 0.9876,
        "overlap_at_10_interval": [0.9812, 0.9931],
        "cosine": {"min": 0.98765, "mean": 0.99931},
        "rank_flips": 1234,
        "compact": [],
        "stale": None,
        **changes,
    }


def form(dtype="int8", pca=None, drop=0.75, overlap=0.9012, size=1536):
    return {
        "descriptor_dtype": dtype,
        "pca": pca,
        "bytes_per_descriptor": size,
        "recall": {k: v - drop / 100 for k, v in REFERENCE.items()},
        "recall_drop_pp": {"1": drop, "2": drop},
        "recall_drop_interval_pp": {"1": [drop - 0.5, drop + 0.3], "2": [drop, drop]},
        "overlap_at_10": overlap,
    }


QUIET = {"busy": False, "cores": 2, "others": 0.01, "steal": 0.0}
BUSY = {"busy": True, "cores": 2, "others": 0.98, "steal": 0.25}


def torch_run(batch, rate, p50=45.6, **tail):
    return {
        "batch": batch,
        "threads": 2,
        "latency_ms": {"p50": p50, "p95": None, "p99": None, **tail},
        "images_per_second": rate,
        "speedup_vs_torch": 1.0,
    }


def bench(*engines, passed=True, failures=(), load=QUIET):
    return {
        "schema": 1,
        "environment": {"cpu": "Example CPU", "gpu": None, "versions": {"onnx": "1.17"}, "load": load},
        "reference": {
            "backend": "torch",
            "precision": "fp32",
            "recall": dict(REFERENCE),
            "runs": [torch_run(1, 25.5), torch_run(8, 37.5)],
        },
        "engines": list(engines or (engine(), engine(batch=8, rate=120.0, speedup=4.0))),
        "gate": {"passed": passed, "limits": {"int8": {"max_recall_drop_pp": 0.2}}, "failures": list(failures)},
    }


def unlabelled(result):
    result = copy.deepcopy(result)
    result["reference"].update(backend="onnxruntime", recall={})
    for run in result["reference"]["runs"]:
        run["speedup_vs_torch"] = None
    for run in result["engines"]:
        run.update({name: {} for name in RECALLS}, speedup_vs_torch=None, rank_flips=None)
    return result


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"p{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.new("RGB", (200, 100), (60 * i, 90, 120)).save(path)
    return paths


@pytest.fixture
def rows(pictures):
    query, a, b, c = pictures
    before = [Neighbour(a, None, "sparrow", 0.95, True), Neighbour(b, None, "crow", 0.9, False)]
    after = [before[0], Neighbour(c, None, "crow", 0.8125, False, changed=True)]
    return [QueryRow(query, None, "sparrow", {"torch fp32": before, "onnxruntime int8": after})]


def test_the_numbers_are_there_with_their_units(tmp_path, rows):
    page = Page(write_bench_report(tmp_path / "r.html", bench(), rows))
    for text in ("80.0 images/s", "120 images/s", f"3.20{TIMES}", f"4.00{TIMES}", "12.3 ms", "p95 14.1, p99 20.0"):
        assert text in page.text
    interval = "\N{MINUS SIGN}0.25 pp 95 %: \N{MINUS SIGN}0.55 to +0.25 pp"
    for text in ("85.32%", f"85.07% {interval} cross +0.10 pp", "cross ±0.00 pp", "98.76%"):
        assert text in page.text
    for text in ("0.99931 min 0.98765", "1,234", "24.1 MB", "Example CPU", "onnx: 1.17", "int8 max recall drop 0.2 pp"):
        assert text in page.text


def test_compact_galleries_have_a_row_each(tmp_path):
    forms = [form(), form("binary", 256, drop=12.5, overlap=0.4321, size=32)]
    engines = [engine(compact=forms), engine(batch=8, compact=forms), engine("b.cgd", compact=[form("float16")])]
    page = Page(write_bench_report(tmp_path / "r.html", bench(*engines)))
    compact = page.text.split("Compact galleries")[1].split("Environment")[0]
    minus = "\N{MINUS SIGN}"
    first = f"model-int8.cgd int8 1,536 84.57% {minus}0.75 pp {minus}1.05 to {minus}0.25 pp 90.12%"
    second = f"binary, PCA 256 32 72.82% {minus}12.50 pp {minus}12.80 to {minus}12.00 pp 43.21%"
    for text in (f"{first} {second} onnxruntime int8 b.cgd float16 1,536 84.57%", "model-int8.cgd"):
        assert compact.count(text) == 1


def test_without_compact_galleries_nothing_is_said_of_them(tmp_path):
    assert "Compact" not in Page(write_bench_report(tmp_path / "r.html", bench())).text


def test_compact_galleries_without_classes(tmp_path):
    unknown = {**form("binary"), "recall": {}, "recall_drop_pp": {}, "recall_drop_interval_pp": {}}
    page = Page(write_bench_report(tmp_path / "r.html", unlabelled(bench(engine(compact=[unknown])))))
    assert "Recall@" not in page.text and "binary 1,536 90.12%" in page.text


def test_only_the_first_recall_has_its_interval(tmp_path):
    quality = Page(write_bench_report(tmp_path / "r.html", bench())).text.split("Retrieval quality")[1]
    assert quality.count("95 %:") == 3  # the note, the one recall, and overlap@10
    assert "95 %: 98.12% to 99.31%" in quality


def test_the_reference_has_its_own_throughput_and_latency(tmp_path):
    page = Page(write_bench_report(tmp_path / "r.html", bench()))
    throughput, latency = (part.split("onnxruntime")[0] for part in page.text.split("torch fp32 reference")[1:3])
    assert f"batch 1 2 threads 25.5 images/s 1.00{TIMES} batch 8 2 threads 37.5 images/s 1.00{TIMES}" in throughput
    assert "batch 1 2 threads 45.6 ms batch 8 2 threads 45.6 ms" in latency


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        ({}, "45.6 ms batch"),
        ({"p95": 50.0}, "45.6 ms p95 50.0 batch"),
        ({"p95": 50.0, "p99": 60.0}, "45.6 ms p95 50.0, p99 60.0 batch"),
    ],
)
def test_a_percentile_of_too_few_calls_has_no_mark(tmp_path, tail, told):
    result = bench()
    result["reference"]["runs"][0] = torch_run(1, 25.5, **tail)
    page = Page(write_bench_report(tmp_path / "r.html", result))
    assert told in page.text.split("torch fp32 reference")[2]
    assert len(page.all("div", "tick")) == 4 + len(tail) and len(page.all("div", "p95")) == 2 + ("p95" in tail)


def test_torch_in_another_precision_is_told_apart(tmp_path):
    """On CUDA torch is timed in FP16 too."""
    result = bench()
    result["reference"]["runs"] += [{**torch_run(8, 99.0), "precision": "fp16", "speedup_vs_torch": 2.64}]
    page = Page(write_bench_report(tmp_path / "r.html", result))
    assert "batch 8 fp16, 2 threads" in page.text and page.text.count("fp16") == 2  # throughput and latency
    assert "fp16" not in Page(write_bench_report(tmp_path / "r.html", bench())).text


@pytest.mark.parametrize("load", [BUSY, QUIET, dict.fromkeys(BUSY)])
def test_a_busy_machine_is_named_beside_the_verdict_and_in_the_headline(tmp_path, load):
    page = Page(write_bench_report(tmp_path / "r.html", bench(load=load)))
    verdict = page.text.split("Throughput")[0]
    taken = "this machine was busy: other processes took 0.98 and the hypervisor 0.25 of 2 cores"
    assert (taken in verdict) is (load is BUSY)
    assert ("4.00 times the speed of torch fp32, measured on a busy machine; recall" in verdict) is (load is BUSY)
    assert ("whether this machine was busy is unknown" in verdict) is (load["busy"] is None)
    assert len(page.all("p", "warning")) == (load is not QUIET)


def test_an_engine_of_another_model_is_named_once(tmp_path):
    old = {"stale": "made from another ONNX file than model.onnx beside it"}
    page = Page(write_bench_report(tmp_path / "r.html", bench(engine("a.cgd", **old), engine("a.cgd", batch=8, **old))))
    assert page.text.count("a.cgd was made from another ONNX file than model.onnx beside it.") == 1


@pytest.mark.parametrize(
    ("unanswerable", "told"),
    [
        (1, "recall leaves out 1 of 40 queries: there is no picture of their class to find."),
        (7, "recall leaves out 7 of 40 queries: there is no picture of their class to find."),
        (40, "recall is not measured: none of the 40 queries has a picture of its class to find."),
    ],
)
def test_queries_that_recall_leaves_out_are_counted(tmp_path, unanswerable, told):
    result = {**bench(), "queries": {"asked": 40, "unanswerable": unanswerable}}
    assert f"Note: {told}" in Page(write_bench_report(tmp_path / "r.html", result)).text


@pytest.mark.parametrize("queries", [{}, {"queries": {"asked": 40, "unanswerable": 0}}])
def test_where_recall_counts_every_query_nothing_is_said(tmp_path, queries):
    page = Page(write_bench_report(tmp_path / "r.html", {**bench(), **queries}))
    assert "Note:" not in page.text and "to find" not in page.text


def test_bars_are_in_proportion(tmp_path):
    page = Page(write_bench_report(tmp_path / "r.html", bench(engine(rate=50.0, speedup=None), engine(rate=200.0))))
    widths = [a["style"] for a in page.all("div", "bar")]
    throughput = ["width: 12.75%", "width: 18.75%", "width: 25.0%", "width: 100.0%"]
    assert widths == [*throughput, "width: 100.0%", "width: 100.0%", "width: 27.06%", "width: 27.06%"]
    assert {a["style"] for a in page.all("div", "p95")} == {"left: 30.83%"}


def test_batches_of_an_engine_share_a_heading_and_a_quality_row(tmp_path):
    engines = [engine(), engine(batch=8), engine("other.cgd"), engine("other.cgd", batch=8, overlap_at_10=0.5)]
    page = Page(write_bench_report(tmp_path / "r.html", bench(*engines)))
    assert page.text.count("onnxruntime int8 model-int8.cgd") == 3  # throughput, latency, quality
    quality = page.text.split("Retrieval quality")[1]
    assert quality.count("model-int8.cgd") == 1
    assert "other.cgd batch 8, 2 threads, 1 stream" in quality and "50.00%" in quality


def test_headline_names_the_fastest_engine_and_its_loss():
    assert headline(bench()) == (
        "model-int8.cgd (onnxruntime int8, batch 8) embeds 120 images/s, 4.00 times the speed of torch fp32; "
        "recall@1 \N{MINUS SIGN}0.25 pp (85.32% to 85.07%)."
    )


def test_headline_without_labels_or_reference_speed():
    assert headline(unlabelled(bench())) == (
        "model-int8.cgd (onnxruntime int8, batch 8) embeds 120 images/s; "
        "98.76% of its ten nearest neighbours are the reference's."
    )
    assert headline({"engines": []}) == "No engine was measured."


def test_gate_passed_and_failed(tmp_path):
    passed = Page(write_bench_report(tmp_path / "r.html", bench()))
    assert "✓ Gate passed" in passed.text and passed.all("div", "passed")
    failed = Page(write_bench_report(tmp_path / "r.html", bench(passed=False, failures=["recall@1 fell", "overlap"])))
    assert "✗ Gate failed recall@1 fell overlap" in failed.text and failed.all("div", "failed")


def test_unlabelled_data_and_unknown_speedup(tmp_path):
    page = Page(write_bench_report(tmp_path / "r.html", unlabelled(bench())))
    assert "Recall@" not in page.text and TIMES not in page.text and "No recall" in page.text
    assert "98.76%" in page.text


def test_a_bench_without_engines(tmp_path):
    result = bench()
    result["engines"] = []
    assert "No engine was measured." in Page(write_bench_report(tmp_path / "r.html", result)).text


def test_changed_and_wrong_neighbours_are_marked_without_colour(tmp_path, rows):
    page = Page(write_bench_report(tmp_path / "r.html", bench(), rows))
    assert len(page.all("figure", "changed")) == len(page.all("span", "badge")) - 1 == 1  # one badge in the legend
    assert len(page.all("figure", "correct")) == 2 and len(page.all("figure", "wrong")) == 2
    assert "onnxruntime int8 1 of 2 changed" in page.text
    assert "1 ✓ 0.950 sparrow" in page.text and "changed 2 ✗ 0.812 crow" in page.text
    assert "neighbour 2, crow, wrong, changed" in {a["aria-label"] for a in page.all("svg") if "aria-label" in a}


def test_search_page_without_classes_has_no_marks(tmp_path, pictures):
    found = [Neighbour(pictures[1], None, None, 0.75)]
    row = QueryRow(pictures[0], None, None, {"m.cgd": found})
    page = Page(write_search_page(tmp_path / "s.html", "Two & two", [row]))
    assert page.text.strip().removeprefix("Two & two ") == (
        "Below each picture: rank and cosine similarity Query p0.png m.cgd 1 0.750 p1.png"
    )
    assert not page.all("figure", "correct") + page.all("figure", "wrong") + page.all("figure", "changed")


def captions(tmp_path, *names, query="q.jpg"):
    """What the page says below the query and below each neighbour, without rank and similarity."""
    found = [Neighbour(tmp_path / name, None, None, 0.5) for name in names]
    page = Page(write_search_page(tmp_path / "s.html", "s", [QueryRow(tmp_path / query, None, None, {"N": found})]))
    assert {a["title"] for a in page.all("span", "label")} == {str(tmp_path / name) for name in (*names, query)}
    text = page.text.partition(" Query ")[2].replace("cannot be opened ", "").replace(" N ", " ")
    return re.sub(r" \d 0\.500", ",", text).strip()


@pytest.mark.parametrize(
    ("names", "query", "text"),
    [
        (["crow/1.jpg", "crow/2.jpg"], "q.jpg", "q.jpg, 1.jpg, 2.jpg"),
        (["crow/1.jpg", "rook/2.jpg"], "new/q.jpg", "new/ q.jpg, crow/ 1.jpg, rook/ 2.jpg"),
        (["crow/1.jpg"], "new/1.jpg", "new/ 1.jpg, crow/ 1.jpg"),
        (["a/crow/1.jpg", "b/crow/1.jpg"], "c/d/1.jpg", "c/d/ 1.jpg, a/crow/ 1.jpg, b/crow/ 1.jpg"),
    ],
)
def test_folders_are_shown_where_names_do_not_tell_enough(tmp_path, names, query, text):
    assert captions(tmp_path, *names, query=query) == text


def test_one_picture_under_two_paths_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [Neighbour(Path("1.jpg"), None, None, 1.0)]
    page = Page(write_search_page("s.html", "s", [QueryRow(tmp_path / "1.jpg", None, None, {"N": found})]))
    assert not page.all("span", "folder")


def test_long_names_lose_their_middle(tmp_path):
    names = [f"IMG_2024_holiday_in_the_mountains_{number:05}.jpg" for number in range(2)]
    assert captions(tmp_path, *names) == "q.jpg, IMG_2024…untains_00000.jpg, IMG_2024…untains_00001.jpg"
    text = captions(tmp_path, "Long-tailed_and_long-named_Bird/1.jpg", "crow/1.jpg")
    assert "Long-tai…d_long-named_Bird/ 1.jpg" in text


def test_long_names_that_differ_in_the_middle_stay_whole(tmp_path):
    names = [f"IMG_2024_{number:05}_holiday_in_the_mountains.jpg" for number in range(2)]
    assert captions(tmp_path, *names) == f"q.jpg, {names[0]}, {names[1]}"


def test_a_page_loads_nothing(tmp_path, rows):
    page = Page(write_bench_report(tmp_path / "r.html", bench(), rows))
    assert not page.all("script") + page.all("link") + page.all("iframe")
    links = [a[key] for _, a in page.tags for key in ("src", "href", "srcset") if key in a]
    assert links and all(link.startswith(("#t", "data:image/jpeg;base64,")) for link in links)
    assert not re.search(r"https?://|url\(|@import", page.source)


def test_thumbnails_are_small_cropped_to_the_box_and_stored_once(tmp_path, pictures):
    found = [Neighbour(pictures[1], None, None, 0.9), Neighbour(pictures[1], (0, 0, 50, 100), None, 0.8)]
    row = QueryRow(pictures[0], None, None, {"a": found, "b": found})
    page = Page(write_search_page(tmp_path / "s.html", "s", [row]))
    stored = [base64.b64decode(a["href"].partition(",")[2]) for a in page.all("image")]
    images = [Image.open(io.BytesIO(jpeg)) for jpeg in stored]
    assert [(image.format, image.size) for image in images] == [("JPEG", s) for s in ((112, 56), (112, 56), (50, 100))]
    drawn = [a["href"][1:] for a in page.all("use")]
    assert len(drawn) == 5 and set(drawn) == {a["id"] for a in page.all("symbol")}


def test_a_picture_that_cannot_be_opened_gets_a_placeholder(tmp_path, pictures):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    bad = [(broken, None), (tmp_path / "missing.jpg", None), (tmp_path, None), (pictures[1], (999, 0, 1200, 99))]
    found = [Neighbour(path, box, None, 0.5) for path, box in bad]
    page = Page(write_search_page(tmp_path / "s.html", "s", [QueryRow(pictures[0], None, None, {"m": found})]))
    assert len(page.all("div", "missing")) == 4 and len(page.all("image")) == 1


def test_user_data_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    found = [Neighbour(Path(evil + ".png"), None, evil, 0.5, True, changed=True)]
    row = QueryRow(Path(evil), None, evil, {evil: found})
    result = bench(engine(path=f"{evil}.cgd", backend=evil), passed=False, failures=[evil])
    result["environment"] = {evil: evil, "load": QUIET}
    result["gate"]["limits"] = {evil: {evil: evil}}
    for path in (
        write_bench_report(tmp_path / "r.html", result, [row]),
        write_search_page(tmp_path / "s.html", evil, [row]),
    ):
        page = Page(path)
        assert "<script" not in page.source and "&lt;script&gt;" in page.source
        assert evil in page.text


def test_a_file_name_that_is_not_text_is_written(tmp_path):
    page = write_search_page(tmp_path / "s.html", "s", [QueryRow(Path("caf\udce9.jpg"), None, None, {})])
    assert "caf?.jpg" in page.read_text(encoding="utf-8")


def test_the_page_is_replaced_whole_or_not_at_all(tmp_path, rows, monkeypatch):
    page = tmp_path / "new" / "r.html"
    assert write_bench_report(str(page), bench(), rows) == page
    before = page.read_bytes()

    def fail(self, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        write_search_page(page, "s", rows)
    assert page.read_bytes() == before and list(page.parent.iterdir()) == [page]


@pytest.mark.parametrize(
    ("drop", "text"),
    [(0.254, "\N{MINUS SIGN}0.25 pp"), (-1.5, "+1.50 pp"), (0.001, "±0.00 pp"), (0.0, "±0.00 pp"), (None, "n/a")],
)
def test_differences_point_the_way_the_number_moved(drop, text):
    assert report._difference(drop) == text


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (99.94, "99.9"), (9.8765, "9.88"), (0.0, "0.00")])
def test_numbers_keep_about_three_digits(value, text):
    assert report._number(value) == text
