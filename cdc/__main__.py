"""`viewkeeper-cdc`, and `python -m cdc`."""

from runtime.starting import silent_interrupt

with silent_interrupt():
    from cdc.cli import main

if __name__ == "__main__":
    main()
