"""The report of a comparison: page, tables and pictures."""
