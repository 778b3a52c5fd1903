"""``python -m benchmarks.serving``: `pyattn-serve` and other servers, same models, same load.

::

    models.py       the models, written as ONNX files
    questions.py    inputs for them, and the answers of a bare ONNX Runtime
    forms.py        how tensors travel to each server and back
    peers/          what a user of each of the others would write; its packages
    contenders.py   how each server is started, and what it is sent
    process.py      a server in a process of its own
    load.py         one measurement; report.py, all of them as a table
    compare.py      everybody in turns, several times over
    mix.py, soak.py one server under a mix of requests for an hour: answers, failures, memory
"""
