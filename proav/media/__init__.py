"""Files and arrays: reads and writes clips (`container`), turns sound into mel images and back (`melframes`).

Knows neither models nor Ray.
"""
