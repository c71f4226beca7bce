"""The steps of a protocol that a node can do: each module holds messages and their handlers.

A message is declared once, on its settings; `@answers` beside it makes the handler. `client.app`
finds every module of this package: a new step is a new file here, and nothing else.
"""
