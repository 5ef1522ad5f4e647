"""Side-by-side measurements; each module has `run(**options) -> dict`."""
