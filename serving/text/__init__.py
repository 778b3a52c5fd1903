"""Text in, text or vectors out. Nothing here knows about HTTP.

::

    fields.py        the fields of a JSON request, each checked
    encoding.py      texts to tokens
    embedding.py     texts to vectors, through the scheduler of the engine
    requests.py      what a request for text says
    sampling.py      from logits to a token
    detokenizer.py   from tokens to text, as they come
    cache.py         the memory of a decoder and its steps
    writer.py        a thread that writes all texts of a model side by side
    generation.py    a text, or several, for an event loop
"""
