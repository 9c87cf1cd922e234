"""INT8: calibration, quantization, and the guard on neighbours."""
