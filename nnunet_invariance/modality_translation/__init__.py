"""Images of modalities that were not taken, from those that were."""
