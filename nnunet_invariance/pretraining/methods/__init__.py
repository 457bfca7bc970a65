"""The pre-training methods, one file per method."""

__all__: list[str] = []  # import from the modules
