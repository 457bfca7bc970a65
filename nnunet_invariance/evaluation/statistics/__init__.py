"""Paired differences with confidence intervals."""
