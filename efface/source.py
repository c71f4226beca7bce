"""What a federation learns: the first argument of every `Federation`, as settings."""

from typing import TypeAlias

from client.errors import BadSetting

Source: TypeAlias = str  # a data set today; a task of one's own would come in here


def settings_of(source: Source) -> dict[str, str]:
    """Return the settings that say what is learned, by kebab-case key.

    This is the one place that knows what may be given: whoever adds another kind, such as a class
    that brings its own network and data, turns it into settings here.

    Args:
        source: "digits" or another published data set, "npz:PATH", "folder:PATH", or "none" where
            only the clients have data.

    Raises:
        BadSetting: If it is something else.
    """
    if not isinstance(source, str):
        raise BadSetting(
            "data must be a text such as 'digits', 'npz:scans.npz' or 'folder:photos', got a "
            f"{type(source).__name__}"
        )
    return {"dataset": source}
