"""The metadata of our ONNX files, and how to open and save such files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from cgd_deploy.errors import EngineError, SpecError, in_one_line
from cgd_deploy.files import check_file, replacing
from cgd_deploy.spec import ModelSpec, Precision

FEATURES = "features"
"""The backbone's last feature map: everything after it is the descriptor head."""

OPSET = 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that a model came from.

    checkpoint   absolute path of the checkpoint at export time
    sha256       of the checkpoint file

    Raises TypeError for anything but texts.
    """

    checkpoint: str
    sha256: str

    def __post_init__(self) -> None:
        if not (isinstance(self.checkpoint, str) and isinstance(self.sha256, str)):
            raise TypeError("a source that is no text")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The model's spec, the precision of its backbone, and its source."""

    spec: ModelSpec
    precision: Precision
    source: Source | None = None


def set_metadata(model: onnx.ModelProto, metadata: Metadata) -> None:
    """Replace the model's metadata_props."""
    del model.metadata_props[:]
    props = {"cgd.spec": metadata.spec.to_json(), "cgd.precision": metadata.precision.value}
    if metadata.source:
        props["cgd.source"] = json.dumps(asdict(metadata.source))
    onnx.helper.set_model_props(model, props)


def get_metadata(model: onnx.ModelProto, name: str = "the model") -> Metadata:
    """Read the model's metadata; ``name`` stands for the model in errors.

    Raises SpecError if cgd-deploy did not write the model.
    """
    props = {prop.key: prop.value for prop in model.metadata_props}
    if "cgd.spec" not in props:
        raise SpecError(f"{name} has no cgd-deploy spec in its metadata; make it with `cgd-deploy export ckpt.pt`.")
    try:
        precision = Precision(props.get("cgd.precision"))
        source = Source(**json.loads(props["cgd.source"])) if "cgd.source" in props else None
    except (ValueError, TypeError, RecursionError) as error:
        raise SpecError(f"{name} has damaged metadata ({in_one_line(error)}); export it again.") from error
    return Metadata(spec=ModelSpec.from_json(props["cgd.spec"]), precision=precision, source=source)


def check_exists(path: str | Path) -> None:
    """Raise EngineError if there is no file for ``load_onnx``."""
    if not Path(path).is_file():
        raise EngineError(f"there is no ONNX model at {path}; make it with `cgd-deploy export ckpt.pt`.")


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """Open and check an ONNX file.

    Raises EngineError if the file is missing, truncated, not ONNX, larger than ``limits()``, or keeps weights in other
    files: export writes no such files, and their names could point anywhere on the disk.
    """
    check_exists(path)
    check_file(path, "onnx_bytes", EngineError)
    try:
        model = onnx.load(str(path), load_external_data=False)
        if _refers_elsewhere(model):
            raise EngineError(f"{path} keeps weights in other files; save it as one file, or export it again.")
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        raise EngineError(f"{path} is not a whole ONNX model; export it again.") from error
    return model


def _refers_elsewhere(message: Message) -> bool:
    """Whether a tensor of the message is stored in another file; looks into attributes of nodes and functions too."""
    if isinstance(message, onnx.TensorProto):
        return message.data_location == onnx.TensorProto.EXTERNAL or bool(message.external_data)
    for field, value in message.ListFields():
        if field.message_type and any(map(_refers_elsewhere, [value] if isinstance(value, Message) else value)):
            return True
    return False


def save_onnx(model: onnx.ModelProto, path: str | Path) -> Path:
    """Check the model and write it atomically."""
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        onnx.save(model, str(temporary))
    return Path(path)
