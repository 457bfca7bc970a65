"""When a run stops because of NaN or infinite losses."""

__all__ = ["MAX_NON_FINITE_STEPS"]

#: Consecutive steps with a non-finite loss or gradient that end a run: a few come from half precision and pass.
MAX_NON_FINITE_STEPS = 5
