"""``pyattn-serve bench``: load for any server of the Open Inference Protocol v2.

From a model's metadata to a report::

    requests.py     requests made beforehand, of random values and drawn lengths
    client.py       one connection over HTTP/1.1: bytes out, a status in
    load.py         who sends when: clients in a closed loop, or arrivals in an open one
    report.py       what was measured: percentiles, rates, errors; as a table and as JSON
    command.py      the options, and all of it together

In a closed loop each client sends its next request when it has the answer to its last, so a slow
server is asked less. In an open loop requests come when they come, as from many users, and the time
of an answer counts from the moment at which its request was due, not from when it could be sent:
a server that stalls is charged for everybody who had to wait meanwhile.
"""
