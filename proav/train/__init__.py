"""Training: a loop for any model, a step for each model, engines for the optimizer, launch on Ray."""
