"""The training loop, its optimiser, its processes, and what it leaves when it is interrupted."""
