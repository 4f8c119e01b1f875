"""What pages are made of: HTML pieces, figures, tables of numbers."""
