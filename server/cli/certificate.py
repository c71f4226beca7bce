"""The commands of certificates: `certificate REQUEST` makes one, `certificate verify` reads it."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import click
import typer
from typer.core import TyperGroup

from client.errors import BadSetting
from server.cli.command import FORMAT, NOT_VERIFIED, Answer, Call, command
from server.cli.reading import opened
from server.cli.running import Force

GROUP: Final = "Look"
SHOWN_KEY: Final = "Public key"  # how `efface key` begins the line


class _RequestOrCommand(TyperGroup):
    """A group that takes a command under it, or else an argument of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = inner = self._first(ctx, args) in self.commands
        ctx.allow_interspersed_args = not inner
        return super().parse_args(ctx, args)

    def _first(self, ctx: click.Context, args: list[str]) -> str | None:
        """Return the first word that is neither an option nor the value of one."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        valued = {name for one in options if not one.is_flag for name in one.opts}
        words = iter(args)
        for word in words:
            if not word.startswith("-"):
                return word
            if word in valued:
                next(words, None)
        return None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        found = super().get_params(ctx)
        if ctx.meta.get(__name__):
            return [one for one in found if not isinstance(one, click.Argument)]
        return found


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    made = typer.Typer(cls=_RequestOrCommand)
    command(
        app,
        "certificate",
        group=GROUP,
        epilog="Example: efface certificate r0002 -o certificate.json",
        over=made,
    )(certificate)
    command(made, "verify", epilog="Example: efface certificate verify certificate.json --key KEY")(
        verify
    )


def certificate(
    call: Call,
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST", help="A request to forget, such as r0002.", show_default=False
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, signed: JSON.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Page to write, to be printed.", show_default=False),
    ] = None,
    force: Force = False,
) -> Answer:
    """Write what a request did as a signed certificate, or verify one (`certificate verify`)."""
    if not request:
        raise BadSetting("request must be named, got none", see="efface requests")
    if output is None and html is None:
        raise BadSetting("output must be named, by --output or --html, got neither")
    from server.evidence.certificate import PREDICATE_TYPE, read
    from server.requests import certificates
    from server.requests.exporting import check_output
    from server.storage import keys

    output, html = (path and path.expanduser().resolve() for path in (output, html))
    if output == html:
        raise BadSetting(f"html must be another file than output, got {html}")
    for name, path in (("output", output), ("html", html)):
        if path is not None:
            check_output(path, force=force, name=name)
    home, ledger = opened(call)
    data = certificates.issue(home, ledger, ledger.request(request))
    public = keys.public_keys(home.keys)[0]
    found = read(data, public)  # what does not verify is not given out
    written = None if output is None else certificates.write(output, data)
    page = None
    if html is not None:
        from server.report.certificate import render

        page = certificates.write(html, render(found, public).encode())
    document = {
        "format": FORMAT,
        "request": request,
        "certificate": None if written is None else str(written),
        "page": None if page is None else str(page),
        "sha256": hashlib.sha256(data).hexdigest(),
        "predicate_type": PREDICATE_TYPE,
        "subject": found["subject"],
        "key": public,
    }
    return Answer(document, [str(path) for path in (written, page) if path is not None])


def verify(
    call: Call,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The certificate.")],
    key: Annotated[
        str,
        typer.Option(
            "--key",
            metavar="KEY",
            help="The coordinator's public key as `efface key` prints it, or a file that holds it.",
            show_default=False,
        ),
    ],
    site_key: Annotated[
        list[str] | None,
        typer.Option(
            "--site-key",
            metavar="NAME=KEY",
            help="A site's public key as `efface site init` printed it, or a file that holds it: "
            "the site must have attested with it. May be repeated.",
            show_default=False,
        ),
    ] = None,
) -> Answer:
    """Verify a certificate with the file and the key alone, and say what it certifies."""
    from server.evidence import attested
    from server.evidence.certificate import read, sentences
    from server.evidence.envelope import InvalidCertificate

    public = _public(key)
    sites: dict[str, str] = {}
    for told in site_key or ():
        name, equals, of_site = told.partition("=")
        if not (name and equals) or name in sites:
            raise BadSetting(f"site-key must be NAME=KEY, once a site, got {told[:80]!r}")
        sites[name] = _public(of_site)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadSetting(f"file must be readable, got {file} ({error.strerror})") from error
    document: dict[str, Any] = {
        "format": FORMAT,
        "file": str(file),
        "valid": False,
        "problem": None,
        "key": public,
        "site_keys": sites,
        "says": [],
        "statement": None,
    }
    try:
        found = read(data, public, sites)
    except InvalidCertificate as error:
        document["problem"] = str(error)
        return Answer(document, [f"Not valid: {error}."], NOT_VERIFIED)
    says = [*sentences(found), *attested.unchecked(found["predicate"], sites)]
    document |= {"valid": True, "says": says, "statement": found}
    return Answer(document, ["Valid: signed by this key, and unchanged.", *document["says"]])


def _public(told: str) -> str:
    """Return the public key that a word is, or that the file of this name holds.

    Raises:
        BadSetting: If it is neither.
    """
    from client.keys import KEY_TEXT, is_public_key

    if is_public_key(told.strip()):
        return told.strip()
    try:
        text = Path(told).expanduser().read_text()
    except (OSError, ValueError) as error:
        raise BadSetting(f"key must be {KEY_TEXT}, or a file, got {told[:80]!r}") from error
    words = [text.strip()]
    words += [
        line.removeprefix(SHOWN_KEY).strip()
        for line in text.splitlines()
        if line.startswith(SHOWN_KEY)
    ]
    with suppress(ValueError, KeyError, TypeError, RecursionError):  # `efface key --json`
        words.append(json.loads(text)["public_key"])
    for word in words:
        if is_public_key(word):
            return str(word)
    raise BadSetting(f"key must be {KEY_TEXT}, got a file that holds none: {told}")
