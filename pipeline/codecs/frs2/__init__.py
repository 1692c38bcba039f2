"""The frs2 codec: frs with predictions of each level from the coarser one, and of the scores from the features."""
