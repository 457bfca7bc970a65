"""Crops, pairs of crops and synthetic pairs that the methods read."""
