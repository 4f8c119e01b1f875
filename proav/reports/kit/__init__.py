"""The parts of pages: HTML pieces, figures, tables of numbers."""
