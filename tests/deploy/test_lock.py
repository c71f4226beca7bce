"""The pins in docker/ hold what pyproject.toml asks for, each with its hashes."""

import re
import runpy
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
FILES = (ROOT / "docker" / "constraints.txt", ROOT / "docker" / "torch.txt")
LOCK = runpy.run_path(str(ROOT / "docker" / "lock.py"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(path: Path) -> Iterator[tuple[Requirement, str]]:
    """Yield each pinned requirement with its block of lines."""
    for text in LOCK["blocks"](path.read_text()).values():
        for block in re.split(r"\n(?=\S)", text):
            yield Requirement(re.split(r"\s*\\\n", block, maxsplit=1)[0]), block


LOCKED = [one for path in FILES for one in entries(path)]


def versions(environment: dict[str, str]) -> dict[str, str]:
    """Return the version of each package that these files install in `environment`."""
    found: dict[str, str] = {}
    for requirement, _ in LOCKED:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def environment(python: str = "3.11") -> dict[str, str]:
    usual = {key: str(value) for key, value in default_environment().items()}
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    return {
        **usual,
        **linux,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": "",
    }


def unmet(wanted: Requirement, locked: dict[str, str], where: dict[str, str]) -> str | None:
    """Return what is wrong with the pin of a requirement, None if nothing is."""
    if wanted.marker is not None and not wanted.marker.evaluate(where):
        return None
    version = locked.get(canonicalize_name(wanted.name))
    if version is None:
        return f"{wanted} is not pinned"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{wanted} is pinned to {version}"
    return None


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_of_the_project_is_pinned_within_its_bounds(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    where = environment(python)
    locked = versions(where)
    wrong = [unmet(Requirement(text), locked, where) for text in project["dependencies"]]
    assert [one for one in wrong if one] == []
    # And what builds the project: it is installed with --no-build-isolation.
    [build] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert unmet(Requirement(build), locked, where) is None


def test_every_package_has_one_version_and_hashes() -> None:
    assert len(LOCKED) > 60
    for requirement, block in LOCKED:
        assert re.fullmatch(r"==[^=*]+", str(requirement.specifier)), requirement
        assert HASH.search(block), requirement.name


def test_what_the_packages_ask_of_each_other_is_pinned_within_bounds() -> None:
    """Where the very version is installed here, its own words count: no network is needed."""
    where = environment()
    locked = versions(where)
    seen, wrong = 0, []
    for name, version in locked.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] != version:
            continue
        seen += 1
        for text in installed.requires or []:
            problem = unmet(Requirement(text), locked, where)
            wrong += [f"{name}: {problem}"] if problem else []
    assert wrong == []
    assert seen > 20


def test_torch_and_its_libraries_stand_apart() -> None:
    names = [{canonicalize_name(one.name) for one, _ in entries(path)} for path in FILES]
    assert {"torch", "torchvision"} <= names[1]
    assert not names[0] & names[1]
    assert not any(name.startswith(("nvidia-", "cuda-")) for name in names[0])


def test_a_pin_out_of_bounds_would_be_seen() -> None:
    where = environment()
    assert unmet(Requirement("click>=8.2,<8.5"), {"click": "8.5.1"}, where) == (
        "click<8.5,>=8.2 is pinned to 8.5.1"
    )
    assert unmet(Requirement("click"), {}, where) == "click is not pinned"
    assert unmet(Requirement("click; sys_platform == 'win32'"), {}, where) is None
    text = "a==1 \\\n    --hash=sha256:1\nb==2 ; x\n    --hash=sha256:2\na==3\n"
    assert list(LOCK["blocks"](text)) == ["a", "b"]
