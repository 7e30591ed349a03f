"""Reads the event files of a run with TensorBoard's reader and compares them with metrics.jsonl: read_events.py RUN"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = Path(sys.argv[1])
events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
events.Reload()
expected = {}
for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
    if line["type"] == "step":
        names = ["epoch", "learning_rate", "loss", "cross_entropy", "distillation", "accuracy", "gradient_norm"]
        values = {f"train/{name}": line[name] for name in [*names, "images_per_second"] if name in line}
    elif line["type"] == "probe":
        values = {f"validation/{line['probe']}": line["accuracy"]}
    else:
        continue
    for tag, value in values.items():
        value = struct.unpack("f", struct.pack("f", value))[0]
        expected.setdefault(tag, []).append((line["step"], value))
found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
assert found == expected, f"{found}\n{expected}"
assert len(expected) >= 10, expected.keys()
