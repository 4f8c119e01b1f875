"""Preprocessing: from the list of sources to a finished data set, in units of work that can be resumed."""
