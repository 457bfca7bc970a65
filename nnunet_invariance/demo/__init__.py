"""Demos that run one method end to end on synthetic data. They show the pipeline and do not measure the method."""

__all__ = [
    "alice",
    "anatomix",
    "data",
    "folder",
    "icmseg",
    "next_steps",
    "page",
    "pictures",
    "puir",
    "run",
    "steps",
]
