"""Models, configurations and processors: flat, so that the Hub can run a checkpoint with these files alone."""
