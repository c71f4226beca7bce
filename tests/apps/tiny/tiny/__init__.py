"""Ask every node once and write down the answers."""
