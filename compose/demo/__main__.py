"""`python -m compose.demo`, as `make demo` starts it."""

from runtime.starting import silent_interrupt

with silent_interrupt():
    from compose.demo.cli import main

if __name__ == "__main__":
    main()
