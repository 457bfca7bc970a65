"""Scores of predicted segmentations."""

__all__ = [
    "label_maps",
    "metrics",
    "scores",
    "surfaces",
]
