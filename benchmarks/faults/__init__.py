"""Faults: kills at any point, the matrix of faults with their messages, and hostile files."""
