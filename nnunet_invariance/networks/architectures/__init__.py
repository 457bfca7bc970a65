"""Networks that plans can name."""

__all__: list[str] = []  # import from the modules
