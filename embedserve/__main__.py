"""`python -m embedserve` is the `embedserve` command."""

from embedserve.cli import main

if __name__ == "__main__":
    main()
