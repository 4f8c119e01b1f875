"""What comes before the interface: connections, arriving requests, who may ask, errors of every layer."""
