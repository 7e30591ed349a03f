"""Compares exported models in other engines: export.py FOLDER, with model folders and the files of tests/export.rs."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy
import onnx
import onnxruntime
import openvino
import torch

core = openvino.Core()
# The default of some processors is bf16.
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
timm_models = 0


def in_timm(block):
    return "expand" in block and not block.get("projection") and not (block["residual"] and block["stride"] > 1)


def check(folder):
    global timm_models
    case = json.loads((folder / "case.json").read_text())
    values = numpy.fromfile(folder / "input.bin", "uint8" if case["bytes"] else "float32").reshape(case["shape"])
    expected = numpy.fromfile(folder / "output.bin", "float32").reshape(-1, case["classes"])

    def close(engine, found):
        difference, largest = numpy.abs(found - expected).max(), numpy.abs(expected).max()
        assert found.shape == expected.shape, f"{folder.name}, {engine}: {found.shape} instead of {expected.shape}"
        assert difference <= case["tolerance"] * largest, f"{folder.name}, {engine}: {difference} of {largest}"

    path = folder / "model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    config = json.loads((folder / "config.json").read_text())
    assert eval(metadata["names"]) == dict(enumerate(config["labels"])), metadata["names"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    close("ONNX Runtime", session.run(None, {"input": values})[0])
    close("OpenVINO", core.compile_model(path, "CPU")(values)[0])

    if case["bytes"] or model.graph.output[0].name != "logits":
        return
    loader = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    with torch.no_grad():
        close("PyTorch", module.load(folder)(torch.from_numpy(values)).numpy())
        blocks = [block for stage in config["network"]["stages"] for block in stage]
        if all(isinstance(block, dict) and in_timm(block) for block in blocks):
            close("timm", module.load_timm(folder)(torch.from_numpy(values)).numpy())
            timm_models += 1
            return
        try:
            module.load_timm(folder)
        except ValueError:
            return
        raise AssertionError(f"{folder.name}: timm has this architecture")


folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/case.json"))
for folder in folders:
    check(folder)
print(f"{len(folders)} models agree, {timm_models} of them in timm")
