"""The harness: methods compared on one footing, from a recipe to tables and plots."""
