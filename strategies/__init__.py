"""Choreography seen from the server: rounds (Flower strategies) and methods (sequences of rounds)."""
