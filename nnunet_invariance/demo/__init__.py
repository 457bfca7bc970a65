"""Demos: one method end to end on synthetic data; they show the pipeline and are no evidence."""
