"""`viewkeeper-projector`, and `python -m projector`."""

from runtime.starting import silent_interrupt

with silent_interrupt():
    from projector.cli import main

if __name__ == "__main__":
    main()
