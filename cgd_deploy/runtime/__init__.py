"""Engines: the .cgd file, and what runs it."""
