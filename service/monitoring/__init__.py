"""Reports of the service on itself: counters, the recorder of the tail, its store, logs."""
