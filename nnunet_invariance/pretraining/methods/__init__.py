"""The pre-training methods, one file per method."""
