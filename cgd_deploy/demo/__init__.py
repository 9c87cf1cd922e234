"""The demo: drawn pictures, a small model, and a report."""
