"""This machine: its cores, instruction sets and installed packages, and fair timing on it."""
