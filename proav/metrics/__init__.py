"""How good clips are: distances with their protocols, in plain torch."""
