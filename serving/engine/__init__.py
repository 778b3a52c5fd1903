"""Models and their execution. Nothing here knows about HTTP."""
