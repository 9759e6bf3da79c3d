"""What torch says on stderr while an export fails is said again, shorter, by our own error: it is held back; and so is
what it says of itself."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

_LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold torch's log and stderr back; what a model that succeeds writes there is passed on."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    text = io.StringIO()
    try:
        for logger in loggers:
            logger.disabled = True
        with contextlib.redirect_stderr(text), warnings.catch_warnings():
            # of old forms of weight normalisation, and of models that keep their activations: they are handled
            warnings.filterwarnings("ignore", message="The tensor attributes? .* during export")
            yield
        sys.stderr.write(text.getvalue())
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Hold back what torch 2.13 says of its own code where a captured graph is copied or exported."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        yield
