"""The demo: made pictures, a small model, and a report."""
