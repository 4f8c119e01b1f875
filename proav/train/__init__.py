"""Training: a loop that knows no model, a step for each model, an engine that steps the optimizer, and the launch on Ray."""
