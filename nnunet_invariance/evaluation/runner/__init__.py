"""Run the jobs of a comparison and record them."""

__all__ = [
    "comparison",
    "jobs",
    "progress",
    "record",
    "running",
    "stock_commands",
    "stored",
    "tree",
]
