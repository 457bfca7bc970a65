"""Crops, pairs of crops and synthetic pairs that the methods read."""

__all__: list[str] = []  # import from the modules
