"""Numbers about one clip, computed from arrays: scores for the filters, synchrony, fingerprints."""
