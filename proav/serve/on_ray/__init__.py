"""The server on Ray Serve: deployments, samplers, and the watchdog over their processes."""
