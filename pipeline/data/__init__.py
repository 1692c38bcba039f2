"""From images to batches: annotation files, views and their replay, which view lies where, the epoch's order."""
