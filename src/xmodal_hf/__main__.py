"""`python -m xmodal_hf` is the command `xmodal-hf`."""

from .cli import main

if __name__ == "__main__":
    main()
