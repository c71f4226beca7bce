"""Bytes of messages, as they are counted and reported."""

from typing import Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

NUMBER_BYTES: Final = 8


class Sizes:
    """Sizes of many messages that share arrays: each record of arrays is counted once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._known: dict[int, int] = {}

    def of(self, message: Message) -> int:
        """Return the bytes of a message that is kept as long as this object."""
        if not message.has_content():
            return 0
        total = 0
        for record in message.content.values():
            if not isinstance(record, ArrayRecord):
                total += _record_size(record)
                continue
            if id(record) not in self._known:
                self._known[id(record)] = record.count_bytes()
            total += self._known[id(record)]
        return total


def size(message: Message) -> int:
    """Return the bytes of a message's content; an error has none worth counting."""
    return Sizes().of(message)


def _record_size(record: MetricRecord | ConfigRecord) -> int:
    return _config_size(record) if isinstance(record, ConfigRecord) else record.count_bytes()


def _config_size(config: ConfigRecord) -> int:
    """Return the bytes of keys and values: Flower 1.39's own count fails on lists of numbers."""
    total = 0
    for key, value in config.items():
        total += len(key)
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, list):
            total += sum(len(p) if isinstance(p, str | bytes) else NUMBER_BYTES for p in value)
        else:
            total += NUMBER_BYTES
    return total
