"""The frs codec, whose precision follows the FRS map: positions with a high weight in the loss are more exact."""
