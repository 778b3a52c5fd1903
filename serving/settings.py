"""What an operator may set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of an application, whatever server runs it.

    Attributes
    ----------
    model : Path
        The ONNX file.
    name : str or None
        Name to serve the model under; by default the file's name without its suffix.
    threads : int or None
        Threads of ONNX Runtime for each inference; by default the processors allowed by the
        affinity mask and the control group.
    concurrency : int
        Inferences that run at the same time.
    spin : bool
        Let idle threads of ONNX Runtime spin.
    max_body : int
        Largest request body, in bytes.
    body_timeout : float
        Seconds without a byte after which a request body is given up, and seconds that a body may
        take before a slow sender is.
    max_pending : int
        Requests that are decoded, wait or run at the same time; further ones are refused.
    token, admin_token : str or None
        Bearer tokens that clients need, for everything but the health endpoints, and for what
        changes the server.
    """

    model: Path
    name: str | None = None
    threads: int | None = None
    concurrency: int = 2
    spin: bool = False
    max_body: int = 64 * MIB
    body_timeout: float = 30.0
    max_pending: int = 512
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
