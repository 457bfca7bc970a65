"""Measurements of pre-trained features."""

__all__: list[str] = []  # import from the modules
