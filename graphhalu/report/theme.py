"""Theme of every page of the project: colours, frame, style and security policy.

A page is one self-contained file: no network, and no code but a hashed script.
``templates/base.html`` and ``templates/page.css`` are its frame and its style. The style names the
colours of pages, of figures and of canvases. Everything that is not markup of ours is escaped.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from graphhalu.core.numerics import json_ready
from graphhalu.core.web import content_security_policy

TEMPLATES: Final = Path(__file__).parent / "templates"

_CSS: Final = (TEMPLATES / "page.css").read_text(encoding="utf-8")
LIGHT: Final[dict[str, str]] = dict(re.findall(r"--(?!raised)(\w+): (#\w{6});", _CSS.partition("}")[0]))
"""Colours by their part, on light ground; the hues of Okabe and Ito, darkened for text."""

RISING: Final = ("#0b2f6b", "#3d6aa8", "#8f9399", "#d9b24a", "#ffe27a")
"""Colours of low to high values: blue, grey in the middle, yellow. They also rise from dark to
light, so that a greyscale print keeps the order."""


def render(
    template: str, folder: Path, *, css: str = "", script: str = "", has_server: bool = False, **values: Any
) -> str:
    """A page in the style of the package, with a policy that allows nothing but its own parts.

    Args:
        template: File in ``folder``; it extends ``base.html``.
        folder: Where the template lies.
        css: Style of this page behind that of the package.
        script: The only code that the page may run.
        has_server: Whether the page may read from the server that it comes from.
        **values: What the template shows; all of it is escaped but ``Markup``.
    """
    style = _CSS + css
    # these two are files of this package
    trusted = {"css": Markup(style), "script": Markup(script)}  # noqa: S704
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    loader = FileSystemLoader([folder, TEMPLATES])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    policy = content_security_policy(style, script, has_server=has_server)
    return environment.get_template(template).render(policy=policy, **trusted, **values)


def json_block(value: Any) -> Markup:
    """JSON that stands inside a ``script`` element: no text in it can end the element."""
    text = json.dumps(json_ready(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704  # nothing is left in it that could be markup
