"""Heads that are trained beside an encoder."""

__all__: list[str] = []  # import from the modules
