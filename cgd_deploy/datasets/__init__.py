"""Data sets in their authors' layouts, their splits, and the protocol of a test."""
