"""Training: a loop that knows no model, a step for each model, engines for the optimizer, launch on Ray."""
