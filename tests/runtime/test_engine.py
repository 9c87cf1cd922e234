"""Engine: what it takes, what it refuses, and that every CPU backend gives the trained model's neighbours."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine
from PIL import Image

from cgd_deploy.errors import CgdError, EngineError, InputError
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.engine import load
from cgd_deploy.runtime.enginefile import write_engine
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.search.retrieval import neighbours, overlap

ENGINES = [(backend, precision) for backend in ("onnxruntime", "openvino") for precision in ("fp32", "int8")]
SIDE = FAKE_SPEC.input_size[0]


@pytest.fixture
def fake(fake_engine):
    with load(fake_engine) as engine:
        yield engine


def test_the_repr_says_what_runs_where(fake_engine):
    engine = load(fake_engine)
    assert repr(engine) == "<Engine fake.cgd: fake fp32 on cpu, SG 24 values, 32x32>"
    engine.close()
    assert repr(engine) == "<Engine fake.cgd: fake fp32 on cpu, SG 24 values, 32x32, closed>"


def test_loading_and_closing_are_logged_once(fake_engine, caplog):
    caplog.set_level(logging.INFO, "cgd_deploy")
    with load(fake_engine, threads=4, streams=2) as engine:
        engine.close()
    facts = f"backend=fake precision=fp32 device=cpu threads=4 streams=2 space_id={FAKE_SPEC.space_id}"
    assert caplog.messages == [f"loaded {fake_engine}: {facts}", f"closed {fake_engine}"]


def test_debug_logs_how_long_each_step_of_loading_took(fake_engine, caplog):
    caplog.set_level(logging.DEBUG, "cgd_deploy")
    load(fake_engine).close()
    assert sum(bool(re.search(r"took \d+ ms", message)) for message in caplog.messages) == 2


def test_paths_bytes_arrays_and_pillow_images_mix(fake, pictures):
    path = pictures / "kind-0" / "0.jpg"
    with Image.open(path) as image:
        array = np.asarray(image)
        found = fake.embed([path, str(path), path.read_bytes(), image, array])
    assert found.shape == (5, 24) and found.dtype == np.float32
    assert np.array_equal(found, np.repeat(found[:1], 5, axis=0))
    assert np.allclose(found[0], fake.embed(preprocess(path, FAKE_SPEC)[None])[0], atol=1e-6)


def test_descriptors_come_in_the_order_of_the_pictures(fake, picture_list):
    paths = picture_list.paths
    assert np.array_equal(fake.embed(paths[::-1]), fake.embed(paths)[::-1])


def test_a_strided_view_of_pixels_is_read_right(fake):
    pixels = golden_images(FAKE_SPEC, 6)
    assert np.array_equal(fake.embed(pixels[::2, :, ::-1]), fake.embed(np.ascontiguousarray(pixels[::2, :, ::-1])))


@pytest.mark.parametrize("nothing", [[], np.empty((0, SIDE, SIDE, 3), np.uint8)])
def test_no_pictures_give_no_descriptors(fake, nothing):
    found = fake.embed(nothing)
    assert found.shape == (0, 24) and found.dtype == np.float32


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, SIDE, SIDE, 3), np.float32),
        np.zeros((2, SIDE + 1, SIDE, 3), np.uint8),
        np.zeros((2, 3, SIDE, SIDE), np.uint8),
        np.zeros((2, SIDE, SIDE, 4), np.uint8),
    ],
)
def test_pixels_of_another_type_or_shape_are_refused(fake, images):
    with pytest.raises(InputError, match=r"expected uint8 \[N, 32, 32, 3\]"):
        fake.embed(images)


@pytest.mark.parametrize("one", ["a.jpg", b"jpeg", Path("a.jpg"), np.zeros((SIDE, SIDE, 3), np.uint8)])
def test_one_picture_without_a_list_is_refused(fake, one):
    with pytest.raises(InputError, match="several pictures"):
        fake.embed(one)


def test_batches_are_no_larger_than_the_engine_allows(fake, monkeypatch):
    sizes = []
    run = fake._backend.run
    monkeypatch.setattr(fake._backend, "run", lambda images: sizes.append(len(images)) or run(images))
    pixels = golden_images(FAKE_SPEC, 19)
    found = fake.embed(pixels)
    assert sizes == [8, 8, 3]
    assert np.array_equal(found, run(pixels))


def test_embed_list_uses_no_larger_batches_either(fake, picture_list):
    found = list(fake.embed_list(picture_list, batch_size=100))
    assert [len(indices) for indices, _ in found] == [8, 8, 8, 6]
    assert [index for indices, _ in found for index in indices] == list(range(30))
    assert np.array_equal(np.concatenate([part for _, part in found]), fake.embed(picture_list.paths))


def test_self_test_gives_the_smallest_cosine(fake):
    assert fake.self_test() == pytest.approx(1.0, abs=1e-6)


def test_self_test_fails_on_other_descriptors(fake_engine):
    with load(fake_engine) as engine:
        manifest, payload = engine.manifest, engine._file.payload
        images, descriptors = engine._file.golden
    descriptors = descriptors.copy()
    descriptors[-1] = descriptors[-1][::-1]
    write_engine(fake_engine, manifest, payload, images, descriptors)
    with (
        load(fake_engine) as engine,
        pytest.raises(EngineError, match=r"other descriptors .* < 0\.999"),
    ):
        engine.self_test()


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_another_device_is_refused_not_replaced(fake_engine, device):
    with pytest.raises(EngineError, match=f"not on '{device}'"):
        load(fake_engine, device=device)


@pytest.mark.parametrize(("backend", "precision"), ENGINES)
def test_cuda_on_a_machine_without_it_is_refused(engines, backend, precision):
    if backend == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(CgdError) as caught:
        load(engines[backend, precision], device="cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["threads", "streams"])
def test_less_than_one_thread_or_stream_is_refused(fake_engine, option):
    with pytest.raises(InputError, match=f"{option}=0"):
        load(fake_engine, **{option: 0})


def test_leaving_the_context_closes_the_backend(fake_engine, monkeypatch):
    closed = []
    with load(fake_engine) as engine:
        monkeypatch.setattr(engine._backend, "close", lambda: closed.append(True))
    assert closed == [True]


def test_an_engine_says_what_it_is(fake):
    assert (fake.spec, fake.precision.value, fake.max_batch) == (FAKE_SPEC, "fp32", 8)
    assert fake.manifest.backend == "fake"


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def real(request, engines):
    """(precision, loaded engine), for each backend that runs on a CPU."""
    with load(engines[request.param], threads=2) as engine:
        yield request.param[1], engine


def test_descriptors_are_the_trained_models(real, torch_descriptors, pixels):
    precision, engine = real
    similar = cosines(engine.embed(pixels), torch_descriptors(pixels))
    assert similar.min() >= (0.99999 if precision == "fp32" else 0.975)
    assert similar.mean() >= (0.99999 if precision == "fp32" else 0.985)


def test_neighbours_are_the_trained_models(real, torch_descriptors, pixels):
    # Of 29 others, 10 at random would overlap by 0.34.
    precision, engine = real
    found, expected = (
        neighbours(d, d, 10, skip_self=True)[0] for d in (engine.embed(pixels), torch_descriptors(pixels))
    )
    assert overlap(found, expected) >= (0.99 if precision == "fp32" else 0.8)


def test_a_batch_gives_what_its_pictures_give_singly(real, pixels):
    _, engine = real
    singly = np.concatenate([engine.embed(pixels[i : i + 1]) for i in range(7)])
    assert np.abs(engine.embed(pixels[:7]) - singly).max() <= 1e-5


def test_descriptors_have_unit_length(real, pixels):
    _, engine = real
    assert np.abs(np.linalg.norm(engine.embed(pixels), axis=1) - 1).max() <= 1e-5


def test_a_black_and_a_white_picture_stay_finite(real):
    _, engine = real
    extremes = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 255)])
    assert np.isfinite(engine.embed(extremes)).all()


def test_four_threads_share_an_engine(real, pixels):
    _, engine = real
    parts = [pixels[i : i + 3] for i in range(0, 24, 3)]
    expected = [engine.embed(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.embed, parts * 4))
    for one, other in zip(found, expected * 4, strict=True):
        assert np.abs(one - other).max() <= 1e-5


def test_a_real_engine_passes_its_self_test(real):
    assert real[1].self_test() >= 0.9999


def test_a_returned_array_is_not_overwritten_by_the_next_call(real, pixels):
    _, engine = real
    first = engine.embed(pixels[:2])
    kept = first.copy()
    engine.embed(pixels[2:4])
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_payload_that_is_no_model_is_refused(tmp_path, backend):
    with pytest.raises(EngineError, match="cannot load the model") as caught:
        load(write_fake_engine(tmp_path / "e.cgd", backend=backend))
    assert "\n" not in str(caught.value)
