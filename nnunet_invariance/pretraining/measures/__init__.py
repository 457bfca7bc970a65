"""Measures of the quality of pre-trained features."""

__all__: list[str] = []  # import from the modules
