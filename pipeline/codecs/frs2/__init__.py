"""The frs2 codec: the frs codec with predictions and an entropy coder that knows the expected size of each symbol."""
