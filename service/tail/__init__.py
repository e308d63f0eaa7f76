"""Statistics of the rare classes, computed from predictions alone: no labels, numpy only."""
