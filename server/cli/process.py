"""What the command owes the system around it: its streams, and the signal to end.

A reader that goes away, a closed stream or a full disk under one must not stop a request that runs.
"""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

TERMINATED: Final = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """The system asked the process to end: handled as Ctrl-C is."""


class LastingStream:
    """A text stream that goes on, saying nothing, once it can no longer be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or say nothing."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            silence(self._stream)
        return len(text)

    def flush(self) -> None:
        """Flush, or say nothing."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: Any) -> None:
    """Lead a stream to where all is taken and nothing kept; what it held back goes there too."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def write_out(text: str) -> str | None:
    """Write the answer to standard output.

    Returns:
        Why it could not be written; None if it was, or if its reader has left.
    """
    if sys.stdout is None:
        return "it is closed"
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        return error.strerror or str(error)
    return None


def unwritten(why: str) -> str:
    """Return what to say where standard output did not take the answer."""
    return (
        f"Error: standard output must take the answer, got an error: {why}; what was done is kept"
    )


@contextmanager
def guarded() -> Iterator[None]:
    """Run the command with streams that last, and SIGTERM handled as Ctrl-C."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # or the next file opened would take its number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = LastingStream(sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
        _flush()
    except SystemExit:
        _flush()
        raise
    except OSError as error:  # the help, for an answer is written by `write_out`
        silence(sys.stdout)
        print(unwritten(error.strerror or str(error)), file=sys.stderr)
        raise SystemExit(1) from None


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _terminate(number: int, frame: Any) -> None:
    raise Terminated
