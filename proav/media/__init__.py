"""Files and arrays: reads and writes clips (`container`), turns sound into mel images and back (`melframes`).

Nothing here depends on models or on Ray.
"""
