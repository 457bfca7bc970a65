"""Checkpoints of other tools: recognised by their keys, one file a source."""
