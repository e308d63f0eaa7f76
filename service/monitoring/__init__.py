"""What the service reports of itself: counters, the recorder of the tail, its store, logs."""
