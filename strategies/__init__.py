"""Choreography seen from the server: rounds (Flower strategies), and methods made of them."""
