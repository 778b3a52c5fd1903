"""Text and tokens. Nothing here knows about HTTP."""
