"""Several recipes on the same photos: runs, rows, figures, and what they say of the tail."""
