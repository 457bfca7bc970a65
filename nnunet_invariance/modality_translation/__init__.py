"""Images of modalities that were not taken, from those that were."""

__all__: list[str] = []  # import from the modules
