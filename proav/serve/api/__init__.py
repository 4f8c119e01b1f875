"""The interface over HTTP: addresses, their description, the pages."""
