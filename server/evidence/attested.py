"""What sites attest in a certificate: checked with the file alone, and in plain words."""

import hashlib
from collections.abc import Mapping
from typing import Any

from client import attestation
from client.attestation import BadAttestation, Claim
from server.evidence.envelope import InvalidCertificate


def check(told: Mapping[str, Any], site_keys: Mapping[str, str]) -> None:
    """Check what sites signed: each once, of this order, and with the keys that are known.

    Args:
        told: A certificate's predicate.
        site_keys: Public keys by site: each of these must have attested.

    Raises:
        InvalidCertificate: If not.
    """
    order = str(told["order"]["signed"]).encode()
    says = {
        "request": told["order"]["request"],
        "action": told["order"]["action"],
        "order_sha256": hashlib.sha256(order).hexdigest(),
        "tombstone": "kept",
    }
    names: list[str] = []
    for one in told.get("attestations", []):
        try:
            attestation.check(one, Claim(says))
        except BadAttestation as error:
            raise InvalidCertificate(str(error)) from error
        names.append(one["statement"]["site"])
        _check_destroyed(one["statement"], told["order"])
        pinned = site_keys.get(names[-1])
        if pinned is not None and one["key"] != pinned:
            raise InvalidCertificate(
                f"attestation of {names[-1]!a} must be signed by the key given for it, got another"
            )
    if len(set(names)) != len(names):
        raise InvalidCertificate("attestations must be one a site, got two of one")
    if missing := sorted(set(site_keys) - set(names)):
        raise InvalidCertificate(f"{missing[0]!a} must have attested the order, got nothing of it")


def _check_destroyed(statement: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Check that a site destroyed no more than the order had it destroy."""
    allowed = {"none"}
    if statement["site"] in order["clients"]:
        allowed.add("all")
    elif order["level"] == "class" and order["destroy"]:
        allowed.add("classes")
    if statement["destroyed"] not in allowed:
        raise InvalidCertificate(
            f"attestation of {statement['site']!a} must be of what the order had it destroy, got "
            f"{ascii(statement['destroyed'])[:80]}"
        )


def unchecked(told: Mapping[str, Any], site_keys: Mapping[str, str]) -> list[str]:
    """Return in words whose attestations were checked with no key but the one in them."""
    signed = [one["statement"] for one in told.get("attestations", [])]
    names = [one["site"] for one in signed if not one["simulated"] and one["site"] not in site_keys]
    if not names:
        return []
    return [
        f"Not checked: whether the keys that sign for {', '.join(names)} are theirs; whoever holds "
        "the coordinator's key can make others. Name them by --site-key."
    ]


def sentences(told: Mapping[str, Any]) -> list[str]:
    """Return in words what sites signed of the order, and who took part and signed nothing."""
    if "attestations" not in told:
        return []
    signed = [one["statement"] for one in told["attestations"]]
    names = [one["site"] for one in signed]
    found = []
    if signed:
        gone = [f"{one['site']} ({_sets(one)})" for one in signed if one["destroyed"] != "none"]
        found.append(
            f"Attested by a signature of their own, that the order was made to last there: "
            f"{', '.join(names)}."
            + (f" Synthetic sets destroyed: {', '.join(gone)}." if gone else "")
        )
    if derived := [one["site"] for one in signed if one["simulated"]]:
        found.append(
            f"No site stands behind {', '.join(derived)}: the keys of simulated clients follow "
            "from their names, and their signatures show nothing."
        )
    if odd := [one["site"] for one in signed if one["code_sha256"] != told["run"]["code_sha256"]]:
        found.append(f"Made to last by other code than the request ran: {', '.join(odd)}.")
    took = {one["client"] for one in told["participants"] if one["answered"]}
    if silent := sorted(took - set(names) - set(told["waiting"])):
        found.append(f"Took part and attested nothing: {', '.join(silent)}.")
    return found


def _sets(one: Mapping[str, Any]) -> str:
    what = "all that it had" if one["destroyed"] == "all" else "what it had of the classes"
    return what if one["sets"] is None else f"{what}, in {one['sets']} of them"
