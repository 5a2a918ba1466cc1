"""The rule that keeps (concept, family) pairs out of all training, judges included."""

from hashlib import sha256

FAMILIES = ("noto", "twemoji", "fluent")
ICON_FAMILY = "mdi"


def is_held_out(concept: str, family: str) -> bool:
    """Whether the drawing of a shared concept by a family of artists is never trained on.

    held out <=> int(sha256("{concept}|{family}"), 16) % 20 == 0; the rule speaks of concepts that
    all three families draw (a row's `shared`), and icons (family "mdi") are never held out.

    Args:
        concept: the icon's id with its hyphens, such as "red-apple".
        family: "noto", "twemoji", "fluent" (fluent and flat alike) or "mdi".

    Raises:
        ValueError: when the family is unknown.
    """
    if family == ICON_FAMILY:
        return False
    if family not in FAMILIES:
        known = ", ".join((*FAMILIES, ICON_FAMILY))
        raise ValueError(f"family {family!r} is unknown; use one of {known}")
    return int(sha256(f"{concept}|{family}".encode()).hexdigest(), 16) % 20 == 0
