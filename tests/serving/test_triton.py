"""A model repository: what is in it, and what a tritonserver answers from it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import FAKE_SPEC, TUNING, listing, script, write_fake_engine
from PIL import Image

from cgd_deploy import load
from cgd_deploy.errors import EngineError, InputError, MissingDependency
from cgd_deploy.files import sha256_file
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime.enginefile import read_engine, write_engine
from cgd_deploy.runtime.tuning import tuning_path, write_tuning
from cgd_deploy.serving.triton import TritonModel, export_triton
from cgd_deploy.spec import Precision

PAGE = Path(__file__).resolve().parents[2] / "docs" / "triton.md"


def config_of(model: TritonModel) -> Any:
    """config.pbtxt as Triton's own schema reads it."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    from google.protobuf import text_format

    return text_format.Parse((model.folder / "config.pbtxt").read_text(), schema.ModelConfig())


def parameters_of(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def test_onnx_goes_to_tritons_own_backend(engines, pixels, tmp_path):
    path = engines["onnxruntime", "int8"]
    model = export_triton(path, tmp_path / "repository")
    assert model == TritonModel("onnxruntime-int8", "onnxruntime", tmp_path / "repository" / "onnxruntime-int8")
    assert listing(model.folder).keys() == {"config.pbtxt", "1", "1/model.onnx"}
    session = onnxruntime.InferenceSession(model.folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    with load(path) as engine:
        np.testing.assert_allclose(session.run(None, {"images": pixels[:4]})[0], engine.embed(pixels[:4]), atol=1e-6)

    config, manifest = config_of(model), read_engine(path).manifest
    assert (config.name, config.backend) == ("onnxruntime-int8", "onnxruntime")
    assert config.max_batch_size == manifest.profile["max"] == 64
    (images,), (descriptors,) = config.input, config.output
    assert images.name == session.get_inputs()[0].name
    assert (images.data_type, list(images.dims)) == (2, [64, 64, 3])  # TYPE_UINT8
    assert descriptors.name == session.get_outputs()[0].name
    assert (descriptors.data_type, list(descriptors.dims)) == (11, [96])  # TYPE_FP32
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, group.KIND_CPU)
    assert parameters_of(config) == {
        "space_id": manifest.spec.space_id,
        "resize": "pillow-bilinear",
        "precision": "int8",
        "engine_sha256": sha256_file(path),
        "built_by": f"onnxruntime {onnxruntime.__version__}",
    }


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """An engine that says it is a TensorRT plan."""
    gpu = {"name": "a GPU", "compute_capability": "8.9"}
    builder = {"name": "tensorrt", "version": "10.16", "cgd_deploy": "0"}
    return write_fake_engine(tmp_path / "plan.cgd", backend="tensorrt", payload="model.plan", gpu=gpu, builder=builder)


def test_the_config_says_how_to_resize(tmp_path):
    engine = write_fake_engine(tmp_path / "e.cgd", replace(FAKE_SPEC, resize="pillow-bicubic-shorter-40"))
    said = parameters_of(config_of(export_triton(engine, tmp_path / "repository")))
    assert said["resize"] == "pillow-bicubic-shorter-40"


@pytest.mark.parametrize("resize", ["pillow-bilinear", "pillow-box", "pillow-bicubic-shorter-72"])
@pytest.mark.parametrize("size", [(97, 131), (131, 97), (300, 77), (64, 48)])
def test_the_page_prepares_pictures_as_preprocess_does(resize, size):
    page = PAGE.read_text(encoding="utf-8")
    (function,) = re.findall(r"^def prepare.*?\n\n\n", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"Image": Image}
    exec(function, names)
    picture = Image.effect_noise(size, 90).convert("RGB")
    spec = replace(FAKE_SPEC, input_size=(64, 48), resize=resize)
    assert np.array_equal(names["prepare"](picture, resize, 64, 48), preprocess(picture, spec))


def test_a_plan_goes_to_tritons_tensorrt_on_every_gpu(plan, tmp_path):
    model = export_triton(plan, tmp_path / "repository")
    assert model.backend == "tensorrt"
    assert (model.folder / "1" / "model.plan").read_bytes() == read_engine(plan).payload
    config = config_of(model)
    (group,) = config.instance_group
    assert (config.backend, group.count, group.kind, list(group.gpus)) == ("tensorrt", 1, group.KIND_GPU, [])
    assert parameters_of(config)["built_by"] == "tensorrt 10.16"


def test_a_gpu_is_warmed_up_before_it_serves(plan, fake_engine, tmp_path):
    """By Triton where its own backend runs the plan, else by the engine; a CPU needs none."""
    largest = read_engine(plan).manifest.profile["max"]
    warm_ups = config_of(export_triton(plan, tmp_path / "native")).model_warmup
    assert [warm_up.batch_size for warm_up in warm_ups] == [1, largest]
    for warm_up in warm_ups:
        images = warm_up.inputs["images"]
        assert (images.data_type, list(images.dims), images.zero_data) == (2, [*FAKE_SPEC.input_size, 3], True)
    assert not config_of(export_triton(plan, tmp_path / "python", python=True)).model_warmup
    assert not config_of(export_triton(fake_engine, tmp_path / "cpu")).model_warmup


def test_a_plan_for_single_pictures_is_warmed_up_once(plan, tmp_path):
    file = read_engine(plan)
    manifest = replace(file.manifest, profile={"min": 1, "opt": 1, "max": 1})
    write_engine(plan, manifest, file.payload, *file.golden)
    (warm_up,) = config_of(export_triton(plan, tmp_path / "repository")).model_warmup
    assert warm_up.batch_size == 1


def test_a_plan_in_python_is_one_instance_on_one_gpu(plan, tmp_path):
    model = export_triton(plan, tmp_path / "repository", python=True)
    assert model.backend == "python"
    assert (model.folder / "1" / "engine.cgd").read_bytes() == plan.read_bytes()
    (group,) = config_of(model).instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, group.KIND_GPU, [0])


def test_tf32_on_onnx_runtime_needs_python(tmp_path):
    """Triton's ONNX Runtime backend would choose between FP32 and TF32 by itself."""
    engine = write_fake_engine(tmp_path / "tf32.cgd", backend="onnxruntime", precision=Precision.TF32)
    model = export_triton(engine, tmp_path / "repository")
    assert model.backend == "python"
    (group,) = config_of(model).instance_group
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [0])
    plan = write_fake_engine(tmp_path / "plan.cgd", backend="tensorrt", precision=Precision.TF32)
    assert export_triton(plan, tmp_path / "repository").backend == "tensorrt"


def test_a_plan_that_takes_no_single_picture_needs_python(tmp_path):
    plan = write_fake_engine(tmp_path / "plan.cgd", backend="tensorrt", profile={"min": 4, "opt": 4, "max": 8})
    with pytest.raises(InputError, match=r"no batch below 4.*--min-batch 1.*--python"):
        export_triton(plan, tmp_path / "repository")
    assert export_triton(plan, tmp_path / "repository", python=True).backend == "python"


@pytest.mark.parametrize("backend", ["fake", "openvino", "tensorrt-rtx"])
def test_what_triton_has_no_backend_for_runs_in_python(backend, tmp_path):
    path = write_fake_engine(tmp_path / "e.cgd", backend=backend)
    model = export_triton(path, tmp_path / "repository")
    assert model.backend == config_of(model).backend == "python"
    assert listing(model.folder).keys() == {"config.pbtxt", "1", "1/model.py", "1/engine.cgd"}
    compile((model.folder / "1" / "model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize("stale", [False, True])
def test_the_tuning_goes_where_the_engine_goes(fake_engine, tmp_path, stale):
    written = write_tuning(fake_engine, read_engine(fake_engine).manifest_sha256, TUNING).read_bytes()
    if stale:
        write_fake_engine(fake_engine, profile={"min": 1, "opt": 2, "max": 2})
    copy = export_triton(fake_engine, tmp_path / "repository").folder / "1" / "engine.cgd"
    assert list(read_engine(copy).tunings) == ([] if stale else [TUNING])
    assert stale or tuning_path(copy).read_bytes() == written


def test_no_delay_and_no_preferred_sizes_unless_asked(fake_engine, tmp_path):
    config = config_of(export_triton(fake_engine, tmp_path, name="plain"))
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.ByteSize() == 0
    config = config_of(export_triton(fake_engine, tmp_path, name="held", max_delay_ms=1.5))
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500
    assert not config.dynamic_batching.preferred_batch_size


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 60_001])
def test_a_delay_that_makes_no_sense_is_refused(fake_engine, tmp_path, delay):
    with pytest.raises(InputError, match="expected 0 to 60000"):
        export_triton(fake_engine, tmp_path / "repository", max_delay_ms=delay)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("stem", "name"), [("model-int8", "model-int8"), ("my model (2)", "my_model_2"), ("..r50.v1", "r50.v1")]
)
def test_the_model_is_named_after_the_file(tmp_path, stem, name):
    assert export_triton(write_fake_engine(tmp_path / f"{stem}.cgd"), tmp_path / "repository").name == name


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", 'a"b', "a\nb", "é"])
def test_a_name_that_triton_does_not_take_is_refused(fake_engine, tmp_path, name):
    with pytest.raises(InputError, match="cannot name a model in Triton; give --name"):
        export_triton(fake_engine, tmp_path / "repository", name=name)
    with pytest.raises(InputError, match="cannot name a model in Triton; give --name"):
        export_triton(write_fake_engine(tmp_path / "模型.cgd"), tmp_path / "repository")


def test_a_model_is_never_replaced(fake_engine, tmp_path):
    first = export_triton(fake_engine, tmp_path / "repository")
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"fake exists already; remove it first, or give the new model another --name"):
        export_triton(fake_engine, tmp_path / "repository", python=True)
    assert listing(tmp_path) == before
    assert export_triton(fake_engine, tmp_path / "repository", name="other").folder.parent == first.folder.parent


def test_what_fails_half_way_leaves_nothing(fake_engine, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cgd_deploy.serving.triton.shutil.copyfile", full)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; choose another repository"):
        export_triton(fake_engine, tmp_path / "repository")
    assert listing(tmp_path / "repository") == {}


def test_a_repository_that_is_a_file_is_refused(fake_engine, tmp_path):
    (tmp_path / "repository").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another repository"):
        export_triton(fake_engine, tmp_path / "repository")


def test_an_engine_of_another_release_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"for backend 'abacus'; this release has .*openvino"):
        export_triton(write_fake_engine(tmp_path / "e.cgd", backend="abacus"), tmp_path / "repository")


def test_what_a_manifest_says_stays_a_string(tmp_path):
    odd = 'a"b\\c\n} name: "x" é'
    path = write_fake_engine(tmp_path / "e.cgd", spec=replace(FAKE_SPEC, space_id=odd))
    config = config_of(export_triton(path, tmp_path / "repository"))
    assert (config.name, parameters_of(config)["space_id"]) == ("e", odd)


def test_a_batch_that_fails_answers_every_request_of_it(fake_engine, tmp_path, monkeypatch):
    names = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: request[name],
        InferenceResponse=lambda error: error,
        TritonError=lambda message: message,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", names)
    model = export_triton(fake_engine, tmp_path / "repository")
    spec = spec_from_file_location("model", model.folder / "1" / "model.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    served = module.TritonPythonModel()
    served.initialize({"model_repository": str(model.folder), "model_version": "1", "model_instance_kind": "CPU"})
    served.finalize()
    errors = served.execute([{"images": fake_pixels(1)}, {"images": fake_pixels(2)}])
    assert len(errors) == 2 and all("is closed; load it again" in error for error in errors)


def test_the_command(cli, fake_engine, tmp_path):
    code, out, err = cli("export-triton", fake_engine, "-o", tmp_path / "models", "--name", "birds")
    assert (code, err) == (0, "")
    assert "tritonserver --model-repository" in out and (tmp_path / "models" / "birds" / "config.pbtxt").is_file()
    code, _, err = cli("export-triton", fake_engine, "-o", tmp_path / "models", "--name", "birds")
    assert code == 2 and err.count("\n") == 1 and "exists already" in err


# ---- with a server ----


@pytest.fixture(scope="session")
def server(engines, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A tritonserver with three models, and one that it was not told to load; clients for HTTP and gRPC."""
    http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    folder = tmp_path_factory.mktemp("triton")
    fake = write_fake_engine(folder / "fake.cgd")
    paths = {"fake": fake, "held": fake, "real": engines["openvino", "int8"], "wrong": folder / "wrong.cgd"}
    file = read_engine(fake)
    write_engine(paths["wrong"], file.manifest, file.payload, file.golden[0], -file.golden[1])
    for name, path in paths.items():
        export_triton(path, folder / "models", name=name, max_delay_ms=0 if name == "fake" else 200)
    loaded = [f"--load-model={name}" for name in ("fake", "held", "real")]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder / "home"))
        patch.delenv("CI", raising=False)  # where telemetry keeps quiet
        (folder / "home").mkdir()
        try:
            urls = stack.enter_context(
                script("tritonserver").serving(folder / "models", "--model-control-mode=explicit", *loaded)
            )
        except MissingDependency as error:
            pytest.skip(str(error))
        clients = [
            stack.enter_context(library.InferenceServerClient(url))
            for library, url in zip((http, grpc), urls, strict=True)
        ]
        yield SimpleNamespace(http=clients[0], grpc=clients[1], urls=urls, paths=paths, home=folder / "home")


def images_for(client: Any, pixels: np.ndarray, datatype: str = "UINT8") -> list[Any]:
    from tritonclient import grpc, http

    images = (http if "http" in type(client).__module__ else grpc).InferInput("images", pixels.shape, datatype)
    images.set_data_from_numpy(pixels)
    return [images]


def ask(client: Any, model: str, pixels: np.ndarray) -> np.ndarray:
    return client.infer(model, images_for(client, pixels)).as_numpy("descriptors")


def send(client: Any, model: str, pixels: np.ndarray) -> Future[np.ndarray]:
    """Over gRPC, without waiting for the answer."""
    future: Future[np.ndarray] = Future()

    def answer(result: Any, error: Exception | None) -> None:
        if error:
            future.set_exception(error)
        else:
            future.set_result(result.as_numpy("descriptors"))

    client.async_infer(model, images_for(client, pixels), answer)
    return future


def fake_pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *FAKE_SPEC.input_size, 3), np.uint8)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("count", [1, 5])
def test_the_server_answers_as_the_engine_does(server, pixels, protocol, count):
    client = getattr(server, protocol)
    for name, pictures in {"fake": fake_pixels(count), "real": pixels[:count]}.items():
        with load(server.paths[name]) as engine:
            expected = engine.embed(pictures)
        found = ask(client, name, pictures)
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        np.testing.assert_array_equal(found, expected)


def test_the_server_writes_nothing_into_its_home(server, pixels):
    ask(server.http, "real", pixels[:1])
    assert list(server.home.iterdir()) == []


@pytest.mark.parametrize("name", ["held", "real"])
def test_requests_that_come_together_run_together_and_each_gets_its_own_rows(server, pixels, name):
    pictures = fake_pixels(30) if name == "held" else pixels
    counts = [1, 2, 1, 3, 1, 1, 2, 1, 4, 1, 1, 2, 1, 5, 1, 3]
    parts = np.split(pictures, np.cumsum(counts)[:-1])
    before = server.grpc.get_inference_statistics(name).model_stats[0]
    futures = [send(server.grpc, name, part) for part in parts]
    found = [future.result(60) for future in futures]
    with load(server.paths[name]) as engine:
        for part, rows in zip(parts, found, strict=True):
            np.testing.assert_allclose(rows, engine.embed(part), atol=1e-6)
    after = server.grpc.get_inference_statistics(name).model_stats[0]
    assert after.inference_count - before.inference_count == len(pictures)
    assert after.execution_count - before.execution_count < len(parts)


def test_a_request_with_a_wrong_shape_fails_alone(server):
    from tritonclient.utils import InferenceServerException

    pictures = fake_pixels(3)
    good, bad, also_good = (
        send(server.grpc, "held", part) for part in (pictures[:1], pictures[1:2, :30], pictures[2:])
    )
    with load(server.paths["held"]) as engine:
        expected = engine.embed(pictures)
    np.testing.assert_array_equal(good.result(60)[0], expected[0])
    np.testing.assert_array_equal(also_good.result(60)[0], expected[2])
    with pytest.raises(InferenceServerException, match=r"Expected \[-1,32,32,3\], got \[1,30,32,3\]"):
        bad.result(60)
    floats = images_for(server.http, pictures.astype(np.float32), "FP32")
    with pytest.raises(InferenceServerException, match="'FP32', but model 'held' expects 'UINT8'"):
        server.http.infer("held", floats)
    with pytest.raises(InferenceServerException, match="batch-size must be <= 8"):
        ask(server.http, "held", fake_pixels(9))


def test_clients_see_shapes_and_the_space_of_descriptors(server):
    metadata = server.http.get_model_metadata("real")
    assert [(i["name"], i["datatype"], i["shape"]) for i in metadata["inputs"]] == [
        ("images", "UINT8", [-1, 64, 64, 3])
    ]
    assert [(o["name"], o["datatype"], o["shape"]) for o in metadata["outputs"]] == [("descriptors", "FP32", [-1, 96])]
    said = {key: value["string_value"] for key, value in server.http.get_model_config("real")["parameters"].items()}
    manifest = read_engine(server.paths["real"]).manifest
    assert said["space_id"] == manifest.spec.space_id != ""
    assert (said["precision"], said["engine_sha256"]) == ("int8", sha256_file(server.paths["real"]))


def test_the_page_shows_what_works(server, engines, pictures, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    shutil.copy(engines["onnxruntime", "int8"], "artifacts/model-int8.cgd")
    shutil.copy(pictures / "kind-1" / "2.jpg", "a.jpg")
    page = PAGE.read_text(encoding="utf-8")
    for command in re.findall(r"^cgd-deploy (.*?)(?: #.*)?$", page, re.MULTILINE):
        assert cli(*command.split())[0] == 0
    assert {path.name for path in Path("models").iterdir()} == {"model-int8", "model-int8-python"}

    (client,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(client.replace("localhost:8000", server.urls[0]).replace("model-int8", "real"), names)
    with load(server.paths["real"]) as engine:
        np.testing.assert_array_equal(names["descriptors"], engine.embed(["a.jpg"]))
        assert names["space"] == engine.spec.space_id


def test_an_engine_that_fails_its_self_test_never_serves(server):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="gives other descriptors than when it was built"):
        server.http.load_model("wrong")
    assert not server.http.is_model_ready("wrong") and server.http.is_model_ready("fake")


def test_without_a_server_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    module = script("tritonserver")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    missing = pytest.raises(MissingDependency, match=r"run `pip install --no-deps nvidia-pytriton`")
    with missing, module.serving(tmp_path):
        raise AssertionError


def test_nothing_of_a_server_is_left_behind(server, fake_engine, tmp_path):
    export_triton(fake_engine, tmp_path / "models")
    with script("tritonserver").serving(tmp_path / "models"):
        assert str(tmp_path) in processes()
    assert str(tmp_path) not in processes()
    (tmp_path / "models" / "fake" / "1" / "engine.cgd").write_bytes(b"")
    refused = pytest.raises(InputError, match=r"did not start: .*is not a whole \.cgd file")
    with refused, script("tritonserver").serving(tmp_path / "models"):
        raise AssertionError
    assert str(tmp_path) not in processes()


def processes() -> str:
    """The command lines of all."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended just now
            found.append(file.read_text())
    return "\n".join(found)
