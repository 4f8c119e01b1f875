"""Training on a Ray cluster: workers, their network, their turn, measurements beside them."""
