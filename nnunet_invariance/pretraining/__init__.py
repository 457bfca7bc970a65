"""One pre-training loop, and one file a method."""
