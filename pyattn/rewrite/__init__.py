"""Finds attention in ONNX graphs and replaces it; imported by :func:`pyattn.accelerate` only.

``inference`` finds sizes, and ``facts`` tells what is known of a value before the graph runs.
``scores`` reads what stands between the product of queries and keys and the softmax, and ``masks``
makes one mask of it, of which ``causal`` proves what it can. ``decomposed``, ``operators`` and
``grouped`` find attention that is written out and attention that is one operator; ``writer`` writes
calls of pyattn's functions; ``engine`` goes over a model with these; ``verify`` runs two models and
compares them.
"""
