"""The streams that hide a vector: ChaCha20 from a key of its own, 64 bits a number."""

from collections.abc import Iterable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from client.secure.fixed_point import UInt64s

_NUMBER: Final = 8  # bytes
_CHUNK: Final = 1 << 15  # numbers at once: with the stream's, they stay in the second cache
_NONCE: Final = bytes(16)  # a key makes one stream


def apply(vector: UInt64s, add: Iterable[bytes], subtract: Iterable[bytes] = ()) -> None:
    """Add and subtract the streams of keys, in place, mod 2^64.

    Args:
        vector: `(n,)`; changed.
        add: Keys of 32 bytes.
        subtract: Likewise.
    """
    streams = [
        (Cipher(ChaCha20(key, _NONCE), mode=None).encryptor(), operation)
        for keys, operation in ((add, np.add), (subtract, np.subtract))
        for key in keys
    ]
    size = min(_CHUNK, len(vector)) * _NUMBER
    zeros, buffer = bytes(size), bytearray(size)
    stream = np.frombuffer(buffer, dtype="<u8")
    for at in range(0, len(vector), _CHUNK):
        part = vector[at : at + _CHUNK]
        for cipher, operation in streams:
            cipher.update_into(memoryview(zeros)[: part.size * _NUMBER], buffer)
            operation(part, stream[: part.size], out=part)
