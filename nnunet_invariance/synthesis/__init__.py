"""Randomised synthesis (arXiv 2411.02372): label maps out of shape templates, and random appearances of them."""
