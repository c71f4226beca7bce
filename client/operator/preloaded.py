"""The installed client/, imported once: a bundle whose client/ holds the very same bytes runs that.

To import a bundle's hundred modules is most of what a small message costs. What the executor may
import before any message is what its operator installed. So it does, from bytes that it keeps, past
every compiled file; and a copy that got a bundle with exactly these files takes the modules as they
were, untouched by any message. A bundle with one byte more or less is unpacked and imported.
"""

import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from flwr.clientapp import ClientApp

from client.operator.bundles import APP, CODE, Bundle

log = logging.getLogger("efface.site")
PACKAGE: Final = CODE.rstrip("/")
ROOT: Final = Path(__file__).parents[2]  # of the installed one


@dataclass(frozen=True)
class Preloaded:
    """The installed client/ in memory.

    Attributes:
        root: Folder that it lies in.
        files: Its sources by their path in a bundle.
        modules: Made of these, by name; they are not this process's own.
        app: Its app.
    """

    root: Path
    files: Mapping[str, bytes]
    modules: Mapping[str, ModuleType]
    app: ClientApp

    def is_in(self, bundle: Bundle) -> bool:
        """Return whether a bundle's client/ holds these files and no others."""
        return {n: data for n, data in bundle.files.items() if n.startswith(CODE)} == self.files

    def take(self) -> ClientApp:
        """Put the modules in the place of this process's own; return the app."""
        forget_package()
        sys.modules.update(self.modules)
        sys.meta_path.insert(0, ExactFinder(self.root, self.files))
        return self.app


class ExactFinder(MetaPathFinder):
    """Finds `client` and what is in it among sources in memory, and nowhere else.

    Args:
        root: The folder that these are said to lie in.
        files: The sources by their path in it.
    """

    def __init__(self, root: Path, files: Mapping[str, bytes]) -> None:
        self.root, self.files = root, files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of `client`; None leaves all others to those after it.

        Raises:
            ModuleNotFoundError: If there is no such source.
        """
        if fullname.partition(".")[0] != PACKAGE:
            return None
        name = fullname.replace(".", "/")
        within = [str(self.root / name)]
        for file, inner in ((f"{name}/__init__.py", within), (f"{name}.py", None)):
            if file in self.files:
                place = str(self.root / file)
                loader = _ExactLoader(fullname, place, self.files[file])
                return spec_from_file_location(
                    fullname, place, loader=loader, submodule_search_locations=inner
                )
        raise ModuleNotFoundError(f"client must hold {fullname}, got none", name=fullname)


class _ExactLoader(SourceFileLoader):
    """Compiles the bytes that it is given, whatever the file has, and however it was compiled."""

    def __init__(self, fullname: str, path: str, source: bytes) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._source, self.path, "exec", dont_inherit=True)
        return code


_found: Preloaded | None = None


def load(root: Path = ROOT) -> None:
    """Import the installed client/, in `root`, beside what this process runs of it.

    Where that fails, each message imports its bundle, and says what is wrong with it.
    """
    global _found
    try:
        _found = _loaded(root)
    except Exception as error:
        log.warning("each message imports its bundle: %s: %s", type(error).__name__, error)


def app_of(bundle: Bundle) -> ClientApp | None:
    """Return the app, ready to run, if a bundle's client/ is what was loaded; None if not."""
    return _found.take() if _found is not None and _found.is_in(bundle) else None


def forget_package() -> dict[str, ModuleType]:
    """Take `client` out of the modules, for another one to be imported; return what went.

    What is in memory of it goes on working.
    """
    names = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


def _loaded(root: Path) -> Preloaded | None:
    """Return client/ of a folder; None if there is no app, or its files change meanwhile."""
    files = _sources(root)
    if APP not in files:
        return None
    own, finder = forget_package(), ExactFinder(root, files)
    sys.meta_path.insert(0, finder)
    try:
        app = importlib.import_module(f"{PACKAGE}.app").app
        # Kept by the function: it reads the files, which a later release may have replaced.
        importlib.import_module(f"{PACKAGE}.wire").fingerprint()
    finally:
        sys.meta_path.remove(finder)
        modules = forget_package()
        sys.modules.update(own)
    # A folder was listed on the way, for the handlers.
    return Preloaded(root, files, modules, app) if _sources(root) == files else None


def _sources(root: Path) -> dict[str, bytes]:
    found = sorted((root / PACKAGE).rglob("*.py"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
