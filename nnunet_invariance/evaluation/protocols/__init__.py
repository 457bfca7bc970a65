"""The evaluation protocols and the arms, cases and splits that they share."""
