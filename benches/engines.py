"""Latency of model folders in ofa, OpenVINO and ONNX Runtime, side by side.

Every model is exported by `ofa export`, and all engines run the same file: f32 in f32. With --int8 the integers are
each engine's own: ours of the folder NAME-int8 beside NAME (written by `ofa quantise`), OpenVINO's by nncf (preset
PERFORMANCE), ONNX Runtime's by its static quantiser (per channel, unsigned activations), calibrated on random images.

Engines take turns, round by round, so that a change of the machine's speed meets all of them; an engine's figure is the
median of its rounds' medians, and its ratio that of ours to it. OpenVINO and ONNX Runtime read and write tensors that
were bound before, so that no time of Python's conversions is counted.

usage: engines.py OFA FOLDER... [--threads 1,2] [--batch 1] [--rounds 5] [--seconds 0.5] [--int8] [--no-onnxruntime]
                  [--files FOLDER]
needs: numpy, openvino, onnxruntime; nncf, onnx and sympy with --int8
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy
import onnxruntime
import openvino


def arguments():
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ofa", help="the program")
    parser.add_argument("folders", nargs="+", type=pathlib.Path, help="model folders of f32 models")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each engine in each round")
    parser.add_argument("--int8", action="store_true", help="compare the integers too")
    parser.add_argument("--no-onnxruntime", action="store_true")
    parser.add_argument("--files", help="keep the ONNX files in this folder, and use those that it has")
    return parser.parse_args()


def median_ms(run, seconds):
    for _ in range(5):
        run()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def ofa_ms(program, folder, threads, batch):
    """The median that `ofa bench` measures in a process of its own."""
    command = [program, "bench", folder, "--model-threads", threads, "--batch", batch, "--json"]
    output = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
    return json.loads(output)["models"][0]["latencies"][0]["ms"]["p50"]


def openvino_run(file, images, threads):
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(file, "CPU", settings)
    request = model.create_infer_request()
    request.set_input_tensor(openvino.Tensor(images))

    def run():
        request.start_async()
        request.wait()

    return run


def onnxruntime_run(file, images, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, images)
    binding.bind_output(session.get_outputs()[0].name)
    return lambda: session.run_with_iobinding(binding)


def by_nncf(source, target, shape):
    import nncf
    import onnx

    model = onnx.load(source)
    name = model.graph.input[0].name
    random = numpy.random.default_rng(0)
    images = [random.standard_normal(shape).astype(numpy.float32) for _ in range(100)]
    dataset = nncf.Dataset(images, lambda image: {name: image})
    preset = nncf.QuantizationPreset.PERFORMANCE
    onnx.save(nncf.quantize(model, dataset, preset=preset, subset_size=len(images)), target)


def by_onnxruntime(source, target, shape):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self):
            self.name = onnxruntime.InferenceSession(source).get_inputs()[0].name
            self.left, self.random = 30, numpy.random.default_rng(0)

        def get_next(self):
            self.left -= 1
            return {self.name: self.random.standard_normal(shape).astype(numpy.float32)} if self.left >= 0 else None

    prepared = target + ".prepared"
    quant_pre_process(source, prepared)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, target, Images(), quant_format=QuantFormat.QDQ, per_channel=True, **types)


def engines(args, folder, batch, threads, scratch):
    """Functions that measure a round, by engine and number type."""
    file = f"{scratch}/{folder.name}-{batch}.onnx"
    if not pathlib.Path(file).exists():
        export = [args.ofa, "export", str(folder), "--batch", str(batch), "--out", file]
        subprocess.run(export, check=True, capture_output=True)
    shape = openvino.Core().read_model(file).inputs[0].shape
    images = numpy.random.default_rng(1).standard_normal(tuple(shape)).astype(numpy.float32)
    timed = lambda run: lambda: median_ms(run, args.seconds)
    with_onnxruntime = not args.no_onnxruntime
    found = {("ofa", "f32"): lambda: ofa_ms(args.ofa, folder, threads, batch)}
    found["OpenVINO", "f32"] = timed(openvino_run(file, images, threads))
    if with_onnxruntime:
        found["ONNX Runtime", "f32"] = timed(onnxruntime_run(file, images, threads))
    if args.int8:
        twin = folder.with_name(f"{folder.name}-int8")
        found["ofa", "int8"] = lambda: ofa_ms(args.ofa, twin, threads, batch)
        quantised = f"{scratch}/{folder.name}-{batch}-nncf.onnx"
        if not pathlib.Path(quantised).exists():
            by_nncf(file, quantised, tuple(shape))
        found["OpenVINO", "int8"] = timed(openvino_run(quantised, images, threads))
        if with_onnxruntime:
            quantised = f"{scratch}/{folder.name}-{batch}-onnxruntime.onnx"
            if not pathlib.Path(quantised).exists():
                by_onnxruntime(file, quantised, tuple(shape))
            found["ONNX Runtime", "int8"] = timed(onnxruntime_run(quantised, images, threads))
    return found


def main():
    args = arguments()
    print("| model | type | threads | batch | ofa ms | OpenVINO ms | ratio | ONNX Runtime ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.files or temporary
        pathlib.Path(scratch).mkdir(parents=True, exist_ok=True)
        for folder in args.folders:
            for batch in args.batch:
                for threads in args.threads:
                    found = engines(args, folder, batch, threads, scratch)
                    rounds = [{engine: measure() for engine, measure in found.items()} for _ in range(args.rounds)]
                    for kind in ("f32", "int8") if args.int8 else ("f32",):
                        ms = lambda engine: statistics.median(figures[engine, kind] for figures in rounds)
                        row = [folder.name, kind, threads, batch, f"{ms('ofa'):.3f}"]
                        for peer in ("OpenVINO", "ONNX Runtime"):
                            known = (peer, kind) in found
                            row += [f"{ms(peer):.3f}", f"{ms('ofa') / ms(peer):.2f}"] if known else ["-", "-"]
                        print("|", " | ".join(str(cell) for cell in row), "|", flush=True)


main()
