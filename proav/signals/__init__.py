"""Numbers about one clip: scores that filters decide on, synchrony, fingerprints.

Arrays in, numbers out.
"""
