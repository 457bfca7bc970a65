"""Building blocks that every package uses: atomic files, locks, options, distributed and numerical helpers."""
