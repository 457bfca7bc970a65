"""`python -m nnunet_invariance`: the same command line, in the form that torchrun starts."""

from nnunet_invariance.cli.main import entry_point

entry_point()
