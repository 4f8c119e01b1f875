"""One order: what a client may ask of the model, uploads as given streams, pictures of what was made.

It knows no HTTP.
"""
