"""Views of one patch."""
