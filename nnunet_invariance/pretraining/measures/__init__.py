"""Measurements of pre-trained features."""
