"""Run the jobs of a comparison and record them."""
