"""Lowering: checkpoint -> ONNX (``onnx_from_checkpoint``) -> engine (``engine_from_onnx``)."""
