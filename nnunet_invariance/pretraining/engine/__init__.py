"""The pre-training loop, its state, schedule and log, and the interface of a method."""

__all__: list[str] = []  # import from the modules
