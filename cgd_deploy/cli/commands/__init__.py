"""A module for each command: its options, which are a dataclass, and a function that takes them."""
