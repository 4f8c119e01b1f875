"""Numbers that say something of one clip: scores that filters decide on, synchrony, fingerprints. Arrays in, numbers out."""
