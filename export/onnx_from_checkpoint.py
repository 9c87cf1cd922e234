"""checkpoint -> ONNX: uint8 pixels in, unit descriptors out, GeM folded, BatchNorm folded, spec in the metadata.

The final L2 norm stays, although n unit branches have norm sqrt(n): a branch may be all zero, and detecting that would
need more nodes than the norm itself.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import onnx

from cgd_deploy.errors import ExportError, not_installed
from cgd_deploy.files import sha256_file
from cgd_deploy.runtime.backends.base import DESCRIPTORS, IMAGES
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import Precision

from .gem import DOMAIN, fold_gem
from .metadata import FEATURES, OPSET, Metadata, Source, save_onnx, set_metadata
from .parity import Parity, parity_of, run_onnx

MIN_COSINE = 0.9999


def onnx_from_checkpoint(checkpoint: str | Path, output: str | Path, *, keep_gem: bool = False) -> Parity:
    """Write the ONNX model of a checkpoint, and beside it the checkpoint's calibration list.

    checkpoint   file that ``train`` or ``import_checkpoint`` wrote
    output       the ONNX file; its calibration list goes to ``calibration_beside(output)``. If the checkpoint has no
                 calibration list, the list of an earlier export is deleted
    keep_gem     keep GeM pooling as one node with a function, see ``fold_gem``

    The ONNX input is ``images`` uint8 [N, H, W, 3] and the output ``descriptors`` float32 [N, D], N dynamic. The file
    is written only if ONNX Runtime gives torch's descriptors for golden pictures (cosine >= 0.9999), singly and in a
    batch. Returns the worse of the two comparisons.
    Raises CheckpointError, SpecError, MissingDependency, or ExportError if the descriptors differ.

    Example:

        parity = onnx_from_checkpoint("ckpt.pt", "model.onnx")
    """
    try:
        import torch

        from cgd_train.checkpoint import load_checkpoint
        from cgd_train.model import DeployModel
        from cgd_train.processes import share_threads
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error

    share_threads()
    output = Path(output)
    loaded = load_checkpoint(checkpoint)
    loaded.model.fold()
    deploy = DeployModel(loaded.model)
    model = _trace(deploy)
    _strip(model)
    _name_features(model)
    fold_gem(model, keep_gem)
    if leftover := [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]:
        raise ExportError(
            f"BatchNorm was not folded into {', '.join(leftover[:3])}; report this backbone as unsupported."
        )
    source = Source(checkpoint=str(Path(checkpoint).absolute()), sha256=sha256_file(checkpoint))
    set_metadata(model, Metadata(spec=loaded.spec, precision=Precision.FP32, source=source))
    onnx.checker.check_model(model, full_check=True)

    images = golden_images(loaded.spec, count=5)
    with torch.inference_mode():
        reference = deploy(torch.from_numpy(images)).numpy()
    parity = min(
        (parity_of(run_onnx(model, images, batch_size), reference) for batch_size in (1, len(images))),
        key=lambda p: p.cosine_min,
    )
    if not parity.cosine_min >= MIN_COSINE:
        raise ExportError(
            f"the ONNX graph differs from torch (cosine {parity.cosine_min:.6f} < {MIN_COSINE}); nothing was written."
        )
    save_onnx(model, output)
    if loaded.calibration:
        loaded.calibration.write(calibration_beside(output))
    else:
        calibration_beside(output).unlink(missing_ok=True)
    return parity


def calibration_beside(model: str | Path) -> Path:
    """model.onnx -> model.calibration.tsv, the list of the training pictures that the checkpoint records."""
    return Path(model).with_suffix(".calibration.tsv")


def _trace(deploy) -> onnx.ModelProto:  # type: ignore[no-untyped-def]  # torch is imported lazily
    import torch

    height, width = deploy.model.spec.input_size
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)  # a batch of 1 would be frozen into the graph
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deploy,
            (example,),
            dynamo=True,
            input_names=[IMAGES],
            output_names=[DESCRIPTORS],
            dynamic_shapes={IMAGES: {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _strip(model: onnx.ModelProto) -> None:
    """Remove the source code and paths that the exporter records."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")


def _name_features(model: onnx.ModelProto) -> None:
    """Rename the tensor that the pooling branches read to FEATURES."""
    pooled = {node.input[0] for node in model.graph.node if node.domain == DOMAIN}
    if len(pooled) != 1:
        raise ExportError(f"expected one feature map under all pooling branches, found {len(pooled)}; export from CGD.")
    old = pooled.pop()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = FEATURES
    for value in model.graph.value_info:
        if value.name == old:
            value.name = FEATURES
