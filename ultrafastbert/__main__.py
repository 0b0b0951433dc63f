"""`python -m ultrafastbert`: the command line."""

from ultrafastbert.cli import main

if __name__ == "__main__":
    main()
