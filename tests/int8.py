"""Compares int8 models in other engines, and with the quantisers of those: int8.py FOLDER.

tests/quantise.rs writes FOLDER/NAME: the f32 model and an int8 model for each engine, as ONNX and as this program's
logits (f32.onnx, f32.bin, onnxruntime.onnx, ...), images.bin and labels.bin of the test set, and calibration.npy.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy
import onnx
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

core = openvino.Core()
# The default of some processors is bf16.
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
onnxruntime.set_default_logger_severity(3)


class Images(CalibrationDataReader):
    def __init__(self, images):
        self.images = iter(images)

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"input": image[None]}


def in_onnx_runtime(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return numpy.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


def in_openvino(path, images):
    request = core.compile_model(path, "CPU").create_infer_request()
    return numpy.concatenate([request.infer({0: image[None]})[0].copy() for image in images])


def in_pytorch(folder, images):
    loader = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    with torch.no_grad():
        network = module.load(folder)
        return torch.cat([network(part) for part in torch.from_numpy(images).split(100)]).numpy()


def quantised_by_onnx_runtime(folder, calibration):
    quant_pre_process(folder / "f32.onnx", folder / "prepared.onnx")
    types = dict(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    reader, target = Images(calibration), folder / "by-onnxruntime.onnx"
    quantize_static(folder / "prepared.onnx", target, reader, quant_format=QuantFormat.QDQ, per_channel=True, **types)
    return target


def quantised_by_nncf(folder, calibration, preset):
    import nncf

    data = nncf.Dataset([image[None] for image in calibration], lambda image: {"input": image})
    options = dict(preset=nncf.QuantizationPreset(preset), subset_size=len(calibration))
    onnx.save(nncf.quantize(onnx.load(folder / "f32.onnx"), data, **options), folder / f"by-nncf-{preset}.onnx")
    return folder / f"by-nncf-{preset}.onnx"


def check(folder):
    case = json.loads((folder / "case.json").read_text())
    images = numpy.fromfile(folder / "images.bin", "float32").reshape(-1, 3, case["resolution"], case["resolution"])
    labels = numpy.fromfile(folder / "labels.bin", "uint32")
    logits = lambda name: numpy.fromfile(folder / f"{name}.bin", "float32").reshape(len(labels), -1)
    f32 = logits("f32")
    calibration = numpy.load(folder / "calibration.npy")

    def row(name, logits):
        right, same = logits.argmax(1) == labels, logits.argmax(1) == f32.argmax(1)
        # The standard error of a difference counts the images on which only one of both is right.
        drop = (f32.argmax(1) == labels).astype(float) - right
        error = drop.std() / len(drop) ** 0.5
        figures = f"{100 * right.mean():6.2f} %  drop {100 * drop.mean():5.2f} +- {100 * error:.2f}"
        print(f"{folder.name:20} {name:24} {figures}  as f32 {100 * same.mean():6.2f} %", flush=True)

    row("f32", f32)
    for engine, run in (("onnxruntime", in_onnx_runtime), ("openvino", in_openvino)):
        onnx.checker.check_model(onnx.load(folder / f"{engine}.onnx"), full_check=True)
        own, found = logits(engine), run(folder / f"{engine}.onnx", images)
        same = (found.argmax(1) == own.argmax(1)).mean()
        row(f"int8 for {engine}", own)
        row(f"its file in {engine}", found)
        print(f"{folder.name:20} {engine} predicts as this program on {100 * same:.2f} %", flush=True)
        assert same >= case["agreement"], f"{folder.name}, {engine}: {same}"
    # Beside the f32 model, load.py loads that; alone, the integers as floats.
    loaded = in_pytorch(folder / "openvino", images)
    assert numpy.abs(loaded - f32).max() < 1e-3 * numpy.abs(f32).max(), folder.name
    loaded = in_pytorch(shutil.copytree(folder / "openvino", folder / "alone" / "openvino"), images)
    row("load.py", loaded)
    assert numpy.abs(loaded - f32).max() > 1e-3 * numpy.abs(f32).max(), folder.name
    assert (loaded.argmax(1) == logits("openvino").argmax(1)).mean() > 0.9, folder.name
    row("by ONNX Runtime", in_onnx_runtime(quantised_by_onnx_runtime(folder, calibration), images))
    if importlib.util.find_spec("nncf"):
        for preset in ("performance", "mixed"):
            row(f"by nncf, {preset}", in_openvino(quantised_by_nncf(folder, calibration, preset), images))


folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/case.json"))
for folder in folders:
    check(folder)
print(f"{len(folders)} int8 models agree")
