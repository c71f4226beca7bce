"""What a simulated node needs and a real one never gets: partitions and shares."""
