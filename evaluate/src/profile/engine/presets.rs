//! Engines whose command lines and output are known.

use super::command::{EngineCommand, Reader, Unit};
use crate::export::DEFAULT_OPSET;
use crate::model::NumberType;
use crate::quantise::Engine;
use crate::{Error, Result};

/// Name and content of the program that measures a model in ONNX Runtime's Python package.
pub const SCRIPT: (&str, &str) = ("onnxruntime_latency.py", include_str!("onnxruntime_latency.py"));

/// An engine whose command line and output are known.
#[derive(Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// Program, which another path may replace.
    program: &'static str,
    /// Arguments, parted by spaces.
    arguments: &'static str,
    /// Expressions that find the time, the most exact first.
    times: &'static [(&'static str, Unit)],
    /// Expression that finds the engine's version.
    version: Option<&'static str>,
    /// Argument that int8 models take besides.
    int8: Option<&'static str>,
    /// Rounding of int8 models.
    rounding: Engine,
    /// Whether it computes on the processor that runs it. Otherwise what is known of this machine says nothing.
    pub is_local: bool,
    /// File that the engine reads, where models have to be converted. Converters to it read no quantised ONNX.
    pub needs: Option<&'static str>,
}

/// A number, in a group.
macro_rules! number {
    ($before:literal, $after:literal) => {
        concat!("(?m)", $before, r"([-+0-9.eE]+|nan|inf)", $after)
    };
}

/// Every preset.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "onnxruntime-python",
        program: "python3",
        arguments: "{script} {model} {threads}",
        times: &[(number!("^median_ms: ", "$"), Unit::Milliseconds)],
        version: Some("(?m)^onnxruntime: (.+)$"),
        int8: None,
        rounding: Engine::OnnxRuntime,
        is_local: true,
        needs: None,
    },
    Preset {
        name: "onnxruntime-perf",
        program: "onnxruntime_perf_test",
        // Without -I it reads inputs from files, and by default it measures for 600 seconds.
        arguments: "-e cpu -I -m times -r 200 -s -x {threads} -y 1 {model} {folder}/result",
        times: &[
            (number!("^P50 Latency(?:: | is )", " ?s(?:ec)?$"), Unit::Seconds),
            (number!("^Average (?:inference )?time cost: ", " ms$"), Unit::Milliseconds),
        ],
        version: None,
        int8: None,
        rounding: Engine::OnnxRuntime,
        is_local: true,
        needs: None,
    },
    Preset {
        name: "openvino-benchmark",
        program: "benchmark_app",
        // A single stream and request are a latency; several overlap, and the tool takes a number of threads only
        // without a hint. Without its precision, f32 may be computed in bf16.
        arguments: "-m {model} -d CPU -hint none -nstreams 1 -nthreads {threads} -api sync -infer_precision f32 \
                    -niter 300 -report_type no_counters -json_stats -report_folder {reports}",
        times: &[
            // The report of the program in C++ is not rounded; that in Python prints times below 1 ms in us.
            (number!(r#""latency_median": "?"#, ""), Unit::Milliseconds),
            (number!(r"^.*\bMedian: +", " (?P<unit>us|ms)$"), Unit::Milliseconds),
        ],
        version: Some(r"(?m)\bBuild \.+ ([^\s]+)"),
        int8: None,
        rounding: Engine::OpenVino,
        is_local: true,
        needs: None,
    },
    Preset {
        name: "litert-benchmark",
        program: "benchmark_model",
        arguments: "--graph={folder}/model.tflite --num_threads={threads}",
        times: &[
            (number!(r"^.*\bInference timings in us: .*Inference \(avg\): ", "$"), Unit::Microseconds),
            (number!(r"^.*\bInference \(avg\): +", " (?P<unit>us|ms)$"), Unit::Milliseconds),
        ],
        version: None,
        int8: None,
        rounding: Engine::OnnxRuntime,
        is_local: false,
        needs: Some("model.tflite"),
    },
    Preset {
        name: "trtexec",
        program: "trtexec",
        arguments: "--onnx={model} --warmUp=200 --duration=1 --noDataTransfers --useSpinWait",
        times: &[(number!(r"^.*\bGPU Compute Time: .*\bmedian = ", " ms\\b.*$"), Unit::Milliseconds)],
        version: Some(r"\bTensorRT\.trtexec \[TensorRT v(\w+)\]"),
        // Without it the engine refuses files of integers.
        int8: Some("--int8"),
        rounding: Engine::TensorRt,
        is_local: false,
        needs: None,
    },
];

impl Preset {
    /// The preset of this name.
    pub fn named(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The command for models of a number type, with another path of its program where one is given.
    ///
    /// # Errors
    /// An expression that is none, or integers where the engine's file has none.
    pub fn command(&self, program: Option<&str>, number_type: NumberType) -> Result<EngineCommand> {
        let is_int8 = number_type == NumberType::Int8;
        if let (Some(file), true) = (self.needs, is_int8) {
            let message = format!("{} reads {file}, and converters to it read no int8 model in ONNX", self.name);
            return Err(Error::Measurement(message));
        }
        let program = std::iter::once(program.unwrap_or(self.program));
        let arguments = self.arguments.split_whitespace().chain(self.int8.filter(|_| is_int8));
        let readers = self.times.iter().map(|(expression, unit)| Reader::new(expression, *unit));
        let version = self.version.map(regex::Regex::new).transpose();
        Ok(EngineCommand {
            name: self.name.into(),
            words: program.chain(arguments).map(String::from).collect(),
            convert: None,
            converted: self.needs,
            readers: readers.collect::<Result<_>>()?,
            version: version.map_err(|error| Error::Measurement(error.to_string()))?,
            folder: false,
            rounding: self.rounding,
            opset: DEFAULT_OPSET,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of each tool, in its versions, and the milliseconds in it.
    const RECORDED: &[(&str, &str, f64)] = &[
        ("onnxruntime-python", "onnxruntime: 1.32.0\nmedian_ms: 0.4123456\n", 0.412_345_6),
        (
            "onnxruntime-perf",
            "Session creation time cost: 0.00908 s\nFirst inference time cost: 1 ms\nTotal inference time cost: 0.0824 s\n\
             Total inference requests: 200\nAverage inference time cost: 0.412103 ms\nTotal inference run time: 0.0825 s\n\
             Number of inferences per second: 2423.4\nAvg CPU usage: 49 %\nPeak working set size: 30408704 bytes\n\
             Avg CPU usage:49\nPeak working set size:30408704\nRuns:200\nMin Latency: 0.000399 s\nMax Latency: 0.000632 s\n\
             P50 Latency: 0.000408 s\nP90 Latency: 0.000431 s\nP95 Latency: 0.00045 s\nP99 Latency: 0.0005 s\n",
            0.408,
        ),
        (
            "onnxruntime-perf",
            "Average inference time cost: 2.51 ms\nMin Latency is 0.00244sec\nP50 Latency is 2.48e-03sec\nP90 Latency is 0.0026sec\n",
            2.48,
        ),
        ("onnxruntime-perf", "Total time cost:8.24\nAverage time cost: 8.24 ms\n", 8.24),
        (
            "openvino-benchmark",
            "[ INFO ] Build ................................. 2026.4.1-21000-abc\r\n[ INFO ] Latency:\r\n[ INFO ]    Median:        412.37 us\r\n\
             [ INFO ]    Average:       415.00 us\r\n[ INFO ]    Min:           401.11 us\r\n",
            0.412_37,
        ),
        (
            "openvino-benchmark",
            "[ INFO ] Latency:\n[ INFO ]    Median:        3.41 ms\n[ INFO ]    Average:       3.45 ms\n",
            3.41,
        ),
        (
            "openvino-benchmark",
            "[ INFO ]    Median:           3.41 ms\n{\n \"execution_results\": {\n  \"latency_avg\": 3.45012,\n  \"latency_median\": 3.41277\n }\n}\n",
            3.412_77,
        ),
        (
            "litert-benchmark",
            "INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds.\n\
             INFO: count=94 first=9117 curr=5211 min=5165 max=9117 avg=5307.23 std=402\n\
             INFO: count=190 first=5190 curr=5211 min=5151 max=5651 avg=5231.9 std=46\n\
             INFO: Inference timings in us: Init: 7423, First inference: 9117, Warmup (avg): 5307.23, Inference (avg): 5231.9\n",
            5.2319,
        ),
        (
            "litert-benchmark",
            "Inference timings in us: Init: 7423, First inference: 9117, Warmup (avg): 1.31e+06, Inference (avg): 1.2e+06\r\n",
            1200.0,
        ),
        (
            "litert-benchmark",
            "  Model initialization: 7.42 ms\n  Warmup (avg):         5.31 ms (94 runs)\n  Inference (avg):      5.23 ms\n",
            5.23,
        ),
        (
            "trtexec",
            "&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --onnx=m.onnx\n\
             [I] Latency: min = 0.301 ms, max = 0.43 ms, mean = 0.31 ms, median = 0.309 ms, percentile(90%) = 0.32 ms\n\
             [I] Enqueue Time: min = 0.1 ms, max = 0.2 ms, mean = 0.12 ms, median = 0.11 ms, percentile(90%) = 0.13 ms\n\
             [I] GPU Compute Time: min = 0.254578 ms, max = 0.375732 ms, mean = 0.262 ms, median = 0.261719 ms, percentile(90%) = 0.27 ms\n",
            0.261_719,
        ),
    ];

    #[test]
    fn the_time_in_the_output_of_each_tool_is_read() {
        for (name, output, expected) in RECORDED {
            let command = Preset::named(name).unwrap().command(None, NumberType::F32).unwrap();
            let ms = command.time_in(output).unwrap_or_else(|error| panic!("{name}: {error}: {output}"));
            assert!((ms - expected).abs() < 1e-9 * expected, "{name}: {ms}");
        }
        assert!(PRESETS.iter().all(|preset| RECORDED.iter().any(|(name, ..)| *name == preset.name)));
    }

    #[test]
    fn the_version_is_read_where_it_is_printed() {
        for (name, version) in
            [("onnxruntime-python", "1.32.0"), ("openvino-benchmark", "2026.4.1-21000-abc"), ("trtexec", "8601")]
        {
            let output = RECORDED.iter().find(|(recorded, ..)| *recorded == name).unwrap().1;
            let command = Preset::named(name).unwrap().command(None, NumberType::F32).unwrap();
            assert_eq!(command.version_in(output).as_deref(), Some(version));
        }
    }

    #[test]
    fn another_program_replaces_that_of_a_preset() {
        let command = Preset::named("trtexec").unwrap().command(Some("/opt/my trt/trtexec"), NumberType::Int8).unwrap();
        assert_eq!(command.words[..2], ["/opt/my trt/trtexec".to_string(), "--onnx={model}".into()]);
        assert_eq!(command.words.last().map(String::as_str), Some("--int8"));
        let error = Preset::named("litert-benchmark").unwrap().command(None, NumberType::Int8).unwrap_err();
        assert!(error.to_string().contains("read no int8 model"), "{error}");
        assert!(Preset::named("trt").is_none());
    }
}
