"""The frozen reasons of an account, summed: what keeps how many parameters from being pruned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Reasons = dict[str, dict[str, int]]
"""Reason → {"whole": parameters in tensors that no group cuts, "part": those in tensors that others cut}."""

_WHERE = re.compile(r" at (?!least)[^;]*$")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)")
_NAME = re.compile(r"\b[\w]+(?:\.[\w]+)+\b")
_NUMBER = re.compile(r"\d+")


def general(reason: str) -> str:
    """A reason without what belongs to one model: module paths, file names, shapes and numbers."""
    text = _WHERE.sub("", reason)
    text = _QUOTED.sub("…", text)
    text = _NAME.sub(lambda m: m.group() if m.group().startswith(_OPS) else "…", text)
    return _NUMBER.sub(lambda m: "#" if not _inside_word(text, m.start()) else m.group(), text).strip()


_OPS = ("aten.", "torchvision.", "higher_order.", "timm.", "prims.")


def _inside_word(text: str, position: int) -> bool:
    """The 2 of conv2d stays."""
    return position > 0 and (text[position - 1].isalpha() or text[position - 1] == "_")


def frozen_reasons(account: Any, sizes: Mapping[str, int]) -> tuple[Reasons, int]:
    """The reasons of `account`, and how many parameters lie in tensors that no group cuts.

    A tensor counts in full under every reason of its dimensions, so the reasons add up to more than all parameters.
    A dimension of one unit is named only where a tensor has no other reason.

    Args:
        sizes: parameter name → number of its elements.
    """
    tensors: dict[str, list[Any]] = {name: [] for name in sizes}
    for entry in account:
        if entry.tensor in tensors:
            tensors[entry.tensor].append(entry)
    reasons: Reasons = {}
    frozen = 0
    for name, entries in tensors.items():
        whole = not any(entry.prunable for entry in entries)
        frozen += sizes[name] if whole else 0
        found = {general(reason) for entry in entries for reason in entry.frozen}
        if whole and not entries:
            found = {"a single number"}
        telling = found - {SINGLE} or (found if whole else set[str]())
        for reason in telling:
            counts = reasons.setdefault(reason, {"whole": 0, "part": 0})
            counts["whole" if whole else "part"] += sizes[name]
    return reasons, frozen


SINGLE = "it has a single unit"
