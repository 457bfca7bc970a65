"""Checkpoints: format, opening, transfer, finding, export."""
