"""Running the jobs of a comparison and recording what was done."""
