"""`python -m taillift`, and `torchrun -m taillift` for several processes."""

from taillift.cli import main

main()
