"""A federated app on handwritten digits."""
