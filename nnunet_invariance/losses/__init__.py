"""The losses, one a file: plain modules on tensors."""
