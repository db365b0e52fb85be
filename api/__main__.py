"""`viewkeeper-api`, and `python -m api`."""

from runtime.starting import silent_interrupt

with silent_interrupt():
    from api.cli import main

if __name__ == "__main__":
    main()
