"""Training on a Ray cluster: workers, their network, the order of starting jobs, validation."""
