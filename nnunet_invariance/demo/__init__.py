"""Demos: one method end to end on synthetic data; they show the pipeline and are no evidence."""

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
