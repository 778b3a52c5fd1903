"""The protocol over HTTP, as an ASGI application. One concept of HTTP per file."""
