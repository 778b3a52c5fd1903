"""The Open Inference Protocol v2: requests and responses as JSON and as binary tensors.

Bytes in, arrays out, and back. Nothing here waits, and nothing knows about connections.
"""
