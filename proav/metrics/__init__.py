"""How good clips are: distances and scores in plain torch and NumPy, and the protocols that name them.

`proav/evaluate` reads clips, runs a protocol and writes its table.
"""
