"""One order: what a client may ask of the model, uploads as given streams, pictures of what was made.

Of HTTP it knows only the errors of `front/api_error.py`.
"""
