"""`taillift`, `python -m taillift`, and `torchrun -m taillift` for several processes."""

import signal


def main() -> None:
    """Run a command; Ctrl-C before the command's own code ends it in one line at most."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from taillift.models.errors import end_in_one_line

    signal.signal(signal.SIGINT, end_in_one_line)
    from taillift import cli

    cli.main()


if __name__ == "__main__":
    main()
