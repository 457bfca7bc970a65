"""Limit for NaN or infinite losses, after which a run stops."""

__all__ = ["MAX_NON_FINITE_STEPS"]

#: Number of consecutive steps with a non-finite loss or gradient that stops a run. Fewer are tolerated, because mixed
#: precision causes isolated ones.
MAX_NON_FINITE_STEPS = 5
