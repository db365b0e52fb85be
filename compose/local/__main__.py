"""`viewkeeper-local`, and `python -m compose.local`."""

from runtime.starting import silent_interrupt

with silent_interrupt():
    from compose.local.cli import main

if __name__ == "__main__":
    main()
