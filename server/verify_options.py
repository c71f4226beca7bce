"""What `efface verify` takes beside the request; apart from the settings, which need torch."""

from typing import Final

# What is measured again is measured as the request did; who asks may reach the clients otherwise.
OF_VERIFY: Final[tuple[str, ...]] = (
    *("data", "max-forget-accuracy", "max-relearning-gap"),
    *("device", "round-timeout", "join-timeout", "engine", "connection", "client-gpus"),
)
