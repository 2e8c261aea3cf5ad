"""Names that Kubernetes takes, made of names that it may not: stable, short and different."""

import hashlib
import re

MOST = 63  # characters of a DNS label and of a label's value
_HASH = 6


def dns_label(name: str) -> str:
    """Lower case letters, digits and ``-``, starting with a letter (RFC 1035); else hashed."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"d-{plain}".strip("-")
    return _told_apart(name, plain, same=plain == name.replace("_", "-").replace(".", "-"))


def label_value(text: str) -> str:
    """Letters, digits and ``-_.``, at most 63 of them; hashed where that changes the text."""
    plain = re.sub(r"[^A-Za-z0-9_.\-]+", "-", text).strip("-_.")
    return _told_apart(text, plain or "x", same=plain == text)


def _told_apart(name: str, plain: str, *, same: bool) -> str:
    """The plain name, with a part of the hash of the true one where they differ or it is long."""
    if same and len(plain) <= MOST:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH]
    return f"{plain[: MOST - _HASH - 1].rstrip('-_.')}-{digest}"
