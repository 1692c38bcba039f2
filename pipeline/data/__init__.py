"""From images to batches: annotation files, views and their replay, shard planning, schedule, stream."""
