"""`python -m compose.demo`, as `make demo` starts it."""

import signal


def start() -> None:
    """Run the command line; until it has its own handler, Ctrl-C ends the process without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Imported here, for importing takes a second in which Ctrl-C would print a traceback.
    from compose.demo.cli import main

    main()


if __name__ == "__main__":
    start()
