"""Errors as one line of text."""

from __future__ import annotations

import re

_FOLDERS = re.compile(r"(?:/[\w.+~-]+)+/(?=[\w.+-])")


def said(error: BaseException, most: int = 400) -> str:
    """An error on one line, files without their folders: those differ from machine to machine."""
    return f"{type(error).__name__}: {plain(str(error))}"[:most]


def plain(text: str) -> str:
    return _FOLDERS.sub("", " ".join(text.split()))
