"""`python -m peers.cli`: the same as the `zoonet` script."""

from peers.cli import main

if __name__ == "__main__":
    main()
