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
        pinned = site_keys.get(names[-1])
        if pinned is not None and one["key"] != pinned:
            raise InvalidCertificate(
                f"attestation of {names[-1]!a} must be signed by the key given for it, got another"
            )
    if len(set(names)) != len(names):
        raise InvalidCertificate("attestations must be one a site, got two of one")
    if missing := sorted(set(site_keys) - set(names)):
        raise InvalidCertificate(f"{missing[0]!a} must have attested the order, got nothing of it")


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
    took = {one["client"] for one in told["participants"] if one["answered"]}
    if silent := sorted(took - set(names) - set(told["waiting"])):
        found.append(f"Took part and attested nothing: {', '.join(silent)}.")
    return found


def _sets(one: Mapping[str, Any]) -> str:
    what = "all that it had" if one["destroyed"] == "all" else "what it had of the classes"
    return what if one["sets"] is None else f"{what}, in {one['sets']} of them"
