"""What there is to prepare: folders, listings and tables become rows of sources."""
