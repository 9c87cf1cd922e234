"""Engines in services: Triton, Ray, and the C library."""
