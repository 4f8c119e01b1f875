"""Preprocessing: from the list of sources to a finished data set, in units of work that are the same however often they are stopped."""
