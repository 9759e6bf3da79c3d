"""The pages in this folder, filled in by jinja2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from actprune.errors import ActpruneError

EXTRA = "pip install 'actprune[report]'"
"""How to install what pages need."""


def rendered(
    name: str, where: str, hint: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any
) -> str:
    """The page of that name, filled in with `values`, in which nothing is markup.

    Raises:
        ActpruneError: jinja2 is not installed; `where` and `hint` are those of the message.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ActpruneError(
            "A page can't be made without jinja2.",
            expected="the extra 'report' of actprune",
            got=str(error),
            where=where,
            hint=hint,
        ) from error
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(filters or {})
    template = files(__name__).joinpath(name).read_text("utf-8")
    return environment.from_string(template).render(**values)
