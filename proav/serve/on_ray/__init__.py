"""The server on Ray Serve: deployments, samplers, and what watches over them."""
