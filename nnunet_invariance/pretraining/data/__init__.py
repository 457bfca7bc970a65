"""Data sets of the pre-training methods: crops, pairs of matched crops, and synthetic pairs."""

__all__: list[str] = []  # import from the modules
