"""Heads that are trained beside an encoder."""
