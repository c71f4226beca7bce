"""What the coordinator keeps: home, ledger, registry, stored updates, journals."""
