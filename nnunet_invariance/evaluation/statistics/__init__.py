"""Means, paired differences and rankings of scores, with intervals and tests."""

__all__ = [
    "coverage",
    "effects",
    "intervals",
    "rank_tests",
    "ranking",
    "score_table",
]
