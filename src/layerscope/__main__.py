"""``python -m layerscope``: the command line, where its script is not on the path."""

from layerscope.cli import main

if __name__ == "__main__":
    main()
