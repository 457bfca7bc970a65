"""The HTML page of a comparison and its parts."""

__all__ = [
    "cases",
    "names",
    "page",
    "pictures",
    "provenance",
    "results",
    "style_pictures",
    "tables",
]
