"""The options block of a plans file, and copies of plans files."""
