//! Flags that name another engine to profile.

use crate::arguments::choice;
use anyhow::{Context, Result, bail, ensure};
use clap::builder::PossibleValuesParser;
use ofa_evaluate::export::DEFAULT_OPSET;
use ofa_evaluate::model::NumberType;
use ofa_evaluate::profile::{EngineCommand, EngineOptions, PRESETS, Preset, Reader, Unit};
use ofa_evaluate::quantise::Engine;

/// Another engine than the program's own, and how long to measure it.
#[derive(clap::Args, Debug, Clone)]
pub struct EngineArgs {
    /// Measure another engine on exported models: onnxruntime-python, onnxruntime-perf, openvino-benchmark,
    /// litert-benchmark, trtexec, or a command. {model}, {threads}, {batch}, {folder} (for files of a run) and
    /// {reports} (files read as output is) in it stand for their values.
    #[arg(long, value_name = "NAME|COMMAND", conflicts_with_all = ["import", "layers"])]
    engine: Option<String>,
    /// Path of the program of a named engine.
    #[arg(long, value_name = "FILE", requires = "engine")]
    engine_program: Option<String>,
    /// Regular expression that finds the time in the output of a command: its group, in parentheses, is the time.
    #[arg(long, value_name = "REGEX", requires = "engine")]
    engine_time: Option<String>,
    /// Unit of that time.
    #[arg(long, default_value = "ms", requires = "engine", value_parser = PossibleValuesParser::new(["ms", "us", "s"]))]
    engine_unit: String,
    /// The model that a command reads: an ONNX file, or a model folder as `ofa extract` writes it.
    #[arg(long, default_value = "onnx", requires = "engine", value_parser = PossibleValuesParser::new(["onnx", "folder"]))]
    engine_model: String,
    /// Command that converts each model before it is measured, with the same placeholders.
    #[arg(long, value_name = "COMMAND", requires = "engine")]
    engine_convert: Option<String>,
    /// Engine whose rounding int8 files have, for a command.
    #[arg(long, value_name = "ENGINE", requires = "engine", value_parser = choice::one_of(Engine::OTHERS))]
    engine_rounding: Option<Engine>,
    /// Version of ONNX's operators in the files, as for `ofa export --opset`.
    #[arg(long, value_name = "OPSET", default_value_t = DEFAULT_OPSET, requires = "engine", value_parser = crate::arguments::numbers::opset)]
    engine_opset: usize,
    /// Largest number of networks to measure with another engine, without those of the check.
    #[arg(long, default_value_t = 120, requires = "engine", value_parser = crate::arguments::numbers::networks)]
    samples: usize,
    /// Measuring another engine ends when the median error of predictions is at most this, and the 95th percentile at
    /// most 2.5 times this.
    #[arg(long, default_value = "3%", requires = "engine", value_parser = crate::arguments::numbers::share)]
    error: f64,
}

impl EngineArgs {
    /// The engine that the flags name; `None` for the program's own.
    ///
    /// # Errors
    /// Flags that do not belong together, or no command.
    pub fn options(&self, number_type: NumberType) -> Result<Option<EngineOptions>> {
        let Some(engine) = &self.engine else { return Ok(None) };
        let mut command = match Preset::named(engine) {
            Some(preset) => self.preset(preset, number_type)?,
            None => self.command(engine)?,
        };
        ensure!(
            number_type == NumberType::Int8 || self.engine_rounding.is_none(),
            "--engine-rounding is for --number-type int8; other models are not rounded"
        );
        command.opset = self.engine_opset;
        command.convert = self.engine_convert.as_deref().map(|text| words("--engine-convert", text)).transpose()?;
        Ok(Some(EngineOptions { command, error: self.error, samples: self.samples }))
    }

    fn preset(&self, preset: &Preset, number_type: NumberType) -> Result<EngineCommand> {
        let name = preset.name;
        let own = [
            ("--engine-time", self.engine_time.is_some()),
            ("--engine-unit", self.engine_unit != "ms"),
            ("--engine-model", self.engine_model != "onnx"),
            ("--engine-rounding", self.engine_rounding.is_some()),
        ];
        if let Some((flag, _)) = own.iter().find(|(_, given)| *given) {
            bail!("{flag} is for commands; what {name} reads and prints is known");
        }
        if let (Some(file), None) = (preset.needs, &self.engine_convert) {
            bail!(
                "{name} does not read ONNX; name a command with --engine-convert that makes {{folder}}/{file} of {{model}}"
            );
        }
        Ok(preset.command(self.engine_program.as_deref(), number_type)?)
    }

    fn command(&self, engine: &str) -> Result<EngineCommand> {
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        ensure!(self.engine_program.is_none(), "--engine-program is for named engines: {}", names.join(", "));
        let words = words("--engine", engine)?;
        let read = self.engine_convert.is_some() || engine.contains("{model}");
        ensure!(
            read,
            "--engine '{engine}': the command does not name {{model}}, and the named engines are {}",
            names.join(", ")
        );
        let expression = self.engine_time.as_deref().context(
            "--engine with a command needs --engine-time, an expression that finds the time in its output, such as 'median: ([0-9.]+) ms'",
        )?;
        let is_folder = self.engine_model == "folder";
        ensure!(
            !is_folder || self.engine_opset == DEFAULT_OPSET,
            "--engine-opset is for ONNX files, and --engine-model folder has none"
        );
        ensure!(
            !is_folder || self.engine_rounding.is_none(),
            "--engine-rounding is for ONNX files; the integers of --engine-model folder are rounded as ofa does"
        );
        let unit = Unit::named(&self.engine_unit).context("--engine-unit is ms, us or s")?;
        Ok(EngineCommand {
            name: "command".into(),
            words,
            convert: None,
            converted: None,
            readers: vec![Reader::new(expression, unit)?],
            version: None,
            folder: is_folder,
            rounding: self.engine_rounding.unwrap_or(Engine::OnnxRuntime),
            opset: self.engine_opset,
        })
    }

    /// The flags again, for the program on another machine.
    pub fn flags(&self) -> Vec<String> {
        let Some(engine) = &self.engine else { return Vec::new() };
        let text = |text: &Option<String>| text.clone();
        let flags = [
            ("--engine", Some(engine.clone())),
            ("--engine-program", text(&self.engine_program)),
            ("--engine-time", text(&self.engine_time)),
            ("--engine-unit", Some(self.engine_unit.clone())),
            ("--engine-model", Some(self.engine_model.clone())),
            ("--engine-convert", text(&self.engine_convert)),
            ("--engine-rounding", self.engine_rounding.map(|engine| engine.name().to_string())),
            ("--engine-opset", Some(self.engine_opset.to_string())),
            ("--samples", Some(self.samples.to_string())),
            ("--error", Some(self.error.to_string())),
        ];
        // One word each: a value may begin with a dash.
        flags.into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value?))).collect()
    }
}

/// A command's words, as a shell would part them.
fn words(flag: &str, command: &str) -> Result<Vec<String>> {
    let words = shlex::split(command).with_context(|| format!("{flag} '{command}': a quotation mark is not closed"))?;
    ensure!(!words.is_empty(), "{flag} is empty; expected a command");
    Ok(words)
}
