"""Comparisons run through the stock nnU-Net commands."""
