"""``python -m benchmarks.serving``: `pyattn-serve` and other servers, same models, same load.

::

    models.py       the models, written as ONNX files
    questions.py    inputs for them, and the answers of a bare ONNX Runtime
    process.py      a server in a process of its own
    mix.py, soak.py one server under a mix of requests for an hour: answers, failures, memory
"""
