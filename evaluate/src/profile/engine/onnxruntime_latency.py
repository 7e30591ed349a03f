"""Prints the median latency of an ONNX model in ONNX Runtime, on random inputs.

usage: python3 onnxruntime_latency.py MODEL.onnx THREADS
"""

import statistics
import sys
import time

import numpy
import onnxruntime

WARM_UP_SECONDS, SECONDS, LEAST_RUNS, MOST_RUNS = 0.2, 0.5, 30, 2000

model, threads = sys.argv[1], int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.inter_op_num_threads = 1
options.add_session_config_entry("session.set_denormal_as_zero", "1")
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
random = numpy.random.default_rng(0)
inputs = {i.name: random.uniform(-2, 2, i.shape).astype(numpy.float32) for i in session.get_inputs()}


def times(seconds):
    """Times of runs in milliseconds, for so many seconds."""
    found = []
    end = time.perf_counter() + seconds
    while len(found) < MOST_RUNS and (len(found) < LEAST_RUNS or time.perf_counter() < end):
        start = time.perf_counter()
        session.run(None, inputs)
        found.append(1e3 * (time.perf_counter() - start))
    return found


times(WARM_UP_SECONDS)
print(f"onnxruntime: {onnxruntime.__version__}")
print(f"median_ms: {statistics.median(times(SECONDS))!r}")
