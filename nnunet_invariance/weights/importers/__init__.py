"""Importers of checkpoints of other tools: one module per format, which is recognised by its keys."""
