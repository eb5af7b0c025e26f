"""From image files and captions to batches."""
