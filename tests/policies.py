"""Policies for real nodes in tests: the safe defaults, but for the lines that a test changes."""

from pathlib import Path

from client.policy import FILE, make_site


def written_policy(folder: Path, name: str, **changes: str) -> Path:
    """Make a site in `folder` and return the path of its policy.

    Args:
        folder: Made if missing; the site's key lies there, too.
        name: The node's.
        changes: Values in TOML by their key in snake case, such as `updates='"single"'`.
    """
    make_site(folder, name)
    path = folder / FILE
    lines = path.read_text().splitlines()
    for key, value in changes.items():
        start = key.replace("_", "-") + " = "
        (number,) = [i for i, line in enumerate(lines) if line.startswith(start)]
        lines[number] = start + value
    path.write_text("\n".join(lines) + "\n")
    return path
