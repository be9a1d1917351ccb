"""Pages and servers: which code a page may run, headers of every answer, and who may ask."""

from base64 import b64encode
from hashlib import sha256
from typing import Final

SAFE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer of a server: nothing is kept, guessed, framed or read by another site."""
OTHER_SITE: Final = "refused: the request comes from another site"


def is_of_other_site(sec_fetch_site: str | None) -> bool:
    """Whether a browser marks a request as coming from another site, by its header ``Sec-Fetch-Site``."""
    return sec_fetch_site not in (None, "none", "same-origin")


def content_security_policy(css: str, script: str, *, has_server: bool = False) -> str:
    """Nothing but this style, this script and pictures inside the page.

    Args:
        css: The style of the page.
        script: Its only code; empty if it has none.
        has_server: Whether the page may read from the server that it comes from.
    """
    allowed = f"'sha256-{_digest(script)}'" if script else "'none'"
    server = "connect-src 'self'; " if has_server else ""
    return (
        f"default-src 'none'; style-src 'sha256-{_digest(css)}'; script-src {allowed}; "
        f"{server}img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
