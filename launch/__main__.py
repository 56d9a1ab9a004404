"""`python -m launch` lists the commands, and `python -m launch COMMAND` runs one, as the console command does."""

from .mossa import main

if __name__ == "__main__":
    main()
