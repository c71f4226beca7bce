"""Requests: checked on arrival, carried out, recorded."""
