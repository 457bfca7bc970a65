"""Building blocks that every package uses: atomic files, locks, options, distributed and numerical helpers."""

__all__: list[str] = []  # import from the modules
