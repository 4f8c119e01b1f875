"""What stands before the interface: connections, requests that arrive, who may ask, errors of every layer."""
