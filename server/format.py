"""How facts are shown wherever they are shown: classes by number and name, what a request names.

And what is never shown: passwords and tokens, whatever text they stand in.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus


def class_text(number: int, names: Sequence[str] | None = None) -> str:
    """Return `class 9 (sneaker)`, or `class 9` where the name is the number alone."""
    return f"class {number_and_name(number, names)}"


def number_and_name(number: int, names: Sequence[str] | None = None) -> str:
    """Return `9 (sneaker)`, or `9` where the name is the number alone, or is not known."""
    name = names[number] if names and 0 <= number < len(names) else str(number)
    return str(number) if name == str(number) else f"{number} ({name})"


def target_text(forget: Mapping[str, Any] | None, names: Sequence[str] | None = None) -> str:
    """Return `class 9 (sneaker)`, or `classes 3, 5 and client client-0`; nothing is an empty text.

    Args:
        forget: `classes` and `clients`, either of which may be missing.
        names: Name of class k at index k.
    """
    found = []
    for name, plural in (("class", "classes"), ("client", "clients")):
        members = (forget or {}).get(plural) or ()
        if members:
            texts = [number_and_name(m, names) if name == "class" else str(m) for m in members]
            found.append(f"{name if len(members) == 1 else plural} {', '.join(texts)}")
    return " and ".join(found)


# Names of what is secret, as keys of URLs' queries, of connection texts, and as options' last word.
_SECRET: Final = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[-_]?key)"
_QUOTED: Final = r"(?:'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\")"
_SHOWN_SECRETS: Final = (
    # user:password@host, up to the last @ of the word; or of the line, unless it begins as a port
    (re.compile(r"(\w[\w+.-]*://[^\s/?#:@]*:)\S*@"), r"\1***@"),
    (re.compile(r"(\w[\w+.-]*://[^\s/?#:@]*:)(?!\*\*\*@|\d{1,5}(?:[/?#\s]|$))[^\n]*@"), r"\1***@"),
    # which a password may as well, before a blank: a host and a path behind the @ tell
    (re.compile(r"(\w[\w+.-]*://[^\s/?#:@]*:)\d{1,5} [^\n]*@(?=[^\s/@:]+(?::\d+)?/)"), r"\1***@"),
    (re.compile(r"(%3A%2F%2F(?:[^\s%]|%(?!3A))*%3A)\S*%40", re.IGNORECASE), r"\1***%40"),
    # ?password=... and password='...' of a connection text
    (re.compile(rf"(\w*{_SECRET}\s*(?:=|%3D)\s*){_QUOTED}?[^\s&]*", re.I), r"\1***"),
    # {'password': '...'}
    (re.compile(rf"((?:\b|_){_SECRET}['\"]?\s*:\s*){_QUOTED}(?=[\s,;)}}\]]|$)", re.I), r"\1***"),
    # --token ...
    (re.compile(rf"(--(?:\w+-)*{_SECRET}\s+)(?:{_QUOTED}|[^\s'\"]|\\.)+", re.I), r"\1***"),
)
_SHORTEST: Final = 4  # characters of a secret that is looked for wherever it may stand


def masked(text: str) -> str:
    """Return a text without the passwords and tokens in it: `***` stands for each.

    In URLs (before the host, or in the query), in connection texts, in mappings, behind options;
    and the ledger's own password (EFFACE_DATABASE_URL) wherever it stands, however encoded.
    """
    for secret, shown in _own_secrets():
        text = text.replace(secret, shown)
    for pattern, shown in _SHOWN_SECRETS:
        text = pattern.sub(shown, text)
    return text


def _own_secrets() -> list[tuple[str, str]]:
    """Return what must not be shown of this process's surroundings, and what stands for it."""
    url = os.environ.get("EFFACE_DATABASE_URL", "")
    found = [os.environ.get("PGPASSWORD", "")]
    before, at, _ = url.partition("://")[2].rpartition("@")
    if at:
        found.append(before.partition(":")[2])
    for part in url.partition("?")[2].split("&"):
        key, _, value = part.partition("=")
        if re.search(_SECRET, key, re.IGNORECASE):
            found.append(value)
    forms = {form for secret in found for form in _forms(secret) if len(form) >= _SHORTEST}
    known = [(form, "***") for form in sorted(forms, key=len, reverse=True)]
    if "@" in url and not at:  # no URL that can be read, and so all of it may be secret
        known.insert(0, (url, "***"))
    return known


def _forms(secret: str) -> set[str]:
    """Return a secret as it is written, read, and written again in URLs, Python and JSON."""
    read = {secret, unquote(secret), unquote_plus(secret)}
    once = read | {quote(s, safe="") for s in read} | {quote_plus(s) for s in read}
    return once | {
        form for s in once for form in (quote(s, safe=""), repr(s)[1:-1], json.dumps(s)[1:-1])
    }
