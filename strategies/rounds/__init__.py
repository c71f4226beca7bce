"""The kinds of round, each a Flower `Strategy`."""
