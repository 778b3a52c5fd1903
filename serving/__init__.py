"""Serve ONNX models over HTTP: the Open Inference Protocol v2 on ONNX Runtime.

``create_app(Settings(model=path))`` is an ASGI application for any ASGI server; the command
``pyattn-serve`` runs it on uvicorn. This package works without the package ``pyattn``.
"""

try:
    from .asgi.app import Application, create_app
    from .engine.failures import ModelError
    from .settings import Settings
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the server needs {error.name}, which the extra pyattn[serve] brings",
        name=error.name,
    ) from error

__all__ = ["Application", "ModelError", "Settings", "create_app"]
