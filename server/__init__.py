"""Requests, versions, verdicts and operation of a federation that trains and forgets."""
