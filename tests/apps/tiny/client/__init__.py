"""The part of the tiny app that runs on a node."""
