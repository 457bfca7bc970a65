"""The weights that ship with the package: their pre-training, their measurement, and the gate that they must pass."""
