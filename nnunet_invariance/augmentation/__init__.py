"""Augmentation: views of one patch, symmetries, masks, and style interventions."""
