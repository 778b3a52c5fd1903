"""What a user of each server would write to serve an ONNX model; each runs in its own environment.

``NAME.txt`` has the packages of that environment. All take their threads and the folder of the
models from the environment variables ``PEER_THREADS`` and ``PEER_MODELS``.
"""
