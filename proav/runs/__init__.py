"""What a run leaves behind: checkpoints, curves, progress."""
