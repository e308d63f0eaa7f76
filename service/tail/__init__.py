"""What becomes of the rare classes, read from predictions alone: no labels, numpy only."""
