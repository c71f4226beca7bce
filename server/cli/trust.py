"""The commands for those who do not take the coordinator's word: key, audit."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli.command import FORMAT, NOT_VERIFIED, Answer, Call, command
from server.cli.reading import opened

GROUP: Final = "Look"
HASH: Final = re.compile(r"[0-9a-f]{64}")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(app, "key", group=GROUP, epilog="Example: efface key --json")(key)
    command(app, "audit", group=GROUP, epilog="Example: efface audit --key PUBLIC_KEY")(audit)


def key(call: Call) -> Answer:
    """Print the coordinator's public key, for sites to pin; a home without one gets one."""
    from server.storage import keys
    from server.storage.home import Home

    home = Home(call.home or None)
    found = keys.signer(home.keys)
    document = {
        "format": FORMAT,
        "public_key": found.public,
        "fingerprint": found.fingerprint,
        "former": keys.public_keys(home.keys)[1:],
    }
    shown = [
        f"Public key   {found.public}",
        f"SHA-256      {found.fingerprint}",
        "",
        "A site pins it in its policy: [keys] coordinators. Compare the SHA-256 by another way.",
    ]
    return Answer(document, shown)


def audit(
    call: Call,
    public: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="PUBLIC_KEY",
            help="The coordinator's public key as you know it, instead of the home's own; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            "--head",
            metavar="HASH",
            help="Newest seal of an earlier audit: it must still be there.",
            show_default=False,
        ),
    ] = "",
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="NAME=STORE",
            help="A site's store, or a copy of its log: it must have what the site attested. May "
            "be repeated.",
            show_default=False,
        ),
    ] = None,
) -> Answer:
    """Check ledger, records, orders, weights and what sites attested against the signatures."""
    from server.requests import site_logs
    from server.requests.audit import audit as audited
    from server.storage import keys

    home, ledger = opened(call)
    for one in public or ():
        keys.fingerprint(one)
    if head and not HASH.fullmatch(head):
        raise BadSetting(f"head must be a SHA-256 in 64 hexadecimal digits, got {head!r}")
    stores: dict[str, Path] = {}
    for told in site or ():
        name, equals, folder = told.partition("=")
        if not (name and equals and folder) or name in stores:
            raise BadSetting(f"site must be NAME=STORE, once a site, got {told[:80]!r}")
        stores[name] = Path(folder).expanduser()
    found = audited(home, ledger, publics=public or (), head=head)
    found.counts["site_lines"] = 0
    for name, store in stores.items():
        wrong, lines = site_logs.problems(home, ledger, name, store)
        found.problems.extend(wrong)
        found.counts["site_lines"] += lines
    trusted = public or keys.public_keys(home.keys)
    newest = found.ledger.hashes[-1] if found.ledger.hashes else None
    document: dict[str, Any] = {
        "format": FORMAT,
        "verified": not found.problems,
        "keys": list(trusted),
        "head": newest,
        "checked": found.counts,
        "unsigned": sorted(found.ledger.unsigned),
        "problems": [asdict(problem) for problem in found.problems],
    }
    counts = [f"{number} {what.replace('_', ' ')}" for what, number in found.counts.items()]
    shown = ["Checked: " + ", ".join(counts)]
    if found.ledger.unsigned:
        shown.append(f"Unsigned, older than the key: {', '.join(document['unsigned'])}")
    shown.append(f"Newest seal: {newest or 'none'}")
    shown += [p.text + (f" in {p.file}" if p.file else "") for p in found.problems]
    good = "All that is signed verifies." if found.ledger.unsigned else "All verifies."
    shown.append("It does not verify." if found.problems else good)
    return Answer(document, shown, NOT_VERIFIED if found.problems else 0)
