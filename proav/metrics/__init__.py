"""How good clips are: distances and scores in plain torch and NumPy, and the protocols that name them.

Not here: reading clips, running a protocol and writing its table (`proav/evaluate`).
"""
