"""An HTTP server for one checkpoint, by contracts that clients already speak; the extra `serve`.

kinds.py      what a checkpoint can do: vectors, scores of pairs, labels
contracts.py  what a request asks for, of each route: from its JSON to windows for the model, and from rows to the answer's JSON
packing.py    requests that wait go through the model together; one thread owns it
app.py        routes, limits, errors; process.py: sockets, time limits, signals
metrics.py    counts in Prometheus' format
"""
