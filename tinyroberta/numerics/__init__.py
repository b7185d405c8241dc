"""Where two implementations of a model part: traces of both, compared op by op.

compare.py is the heart: inputs, weights, then what each op adds. transplant.py runs our float64 ops on another's own inputs.
live.py makes a trace of a backend named on the command line; importers.py reads other programs' arrays; invariance.py holds one
backend to its own bits; report.py draws a page. torch_recorder.py is for where torch is: it imports nothing of this package.
The file format of traces is in ../traces.py.
"""
