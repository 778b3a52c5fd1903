"""Models and their execution. Nothing here knows about HTTP.

From a folder to an answer::

    repository.py   which models and versions lie in a folder, and their settings
    store.py        which of them are loaded; load, unload, swap, poll
    model.py        one version of one model: a session of ONNX Runtime and what it takes
    decoder.py      what the file of a decoder says of itself
    tokenizer.py    what turns text into the inputs of a model and back
    queue.py        the requests that wait for one version: bounded, by priority
    scheduler.py    threads that take batches from the queues and run them
    layout.py       how requests become a batch and a batch becomes answers
    statistics.py   what was counted and how long it took
    engine.py       all of it together, for an event loop

**Versions.** `Store` maps a name to its versions in a dictionary that is only ever replaced as a
whole. A request looks its `Model` up once and keeps it to its end, so a swap is one assignment:
what is in flight ends on the old version, whose memory goes with the last request that holds it.
A version that fails to load changes nothing.

**Scheduler.** There are as many threads as inferences may run at once, shared by all models, and a
queue for each version. A free thread takes from the queue whose head has the highest priority, then
the longest wait. What waits behind the head and fits it goes along: the same sizes but for batch
and sequence, a similar length, within the limits on rows and tokens. An idle model never waits for
company. When a batch fails its requests are run one by one, so each gets its own error.

**Sessions.** A session takes its threads from the affinity mask and the control group; pyattn's
operators are registered where the package is installed (``operators.py``). ONNX Runtime computes
every output of a file; the weights of attention have a switch in those of pyattn, which `Model`
turns off where no request of a run names them.
"""
