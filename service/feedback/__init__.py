"""Labels that come back: prediction ids, the labels themselves, and the live accuracy."""
