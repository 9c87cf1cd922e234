"""INT8: calibration, quantization, and what keeps neighbours."""
