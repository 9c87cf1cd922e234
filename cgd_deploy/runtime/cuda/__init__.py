"""Stream batching on NVIDIA GPUs."""
