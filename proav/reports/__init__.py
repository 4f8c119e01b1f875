"""Pages of a run and of its data: one file each, which opens offline."""
