//! The command of another engine: running it on a model, and reading the time that it prints.
//!
//! Tools differ in how they fail: with an exit code, with a warning, or with no time in their output. So a run counts
//! only if it ended with exit code 0, ignored none of its flags, and printed exactly one finite, positive time.

use crate::quantise::Engine;
use crate::{Error, Result};
use ofa_supernet::files;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A command that has not ended after this time hangs.
const LONGEST: Duration = Duration::from_secs(600);

/// Warning of tools that go on without a flag that they do not know.
const IGNORED_FLAGS: &str = "Unconsumed cmdline flags";

/// Unit of a printed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// `s`
    Seconds,
    /// `ms`
    Milliseconds,
    /// `us`
    Microseconds,
}

impl Unit {
    /// The unit of this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "s" => Unit::Seconds,
            "ms" => Unit::Milliseconds,
            "us" => Unit::Microseconds,
            _ => return None,
        })
    }

    fn milliseconds(self) -> f64 {
        match self {
            Unit::Seconds => 1e3,
            Unit::Milliseconds => 1.0,
            Unit::Microseconds => 1e-3,
        }
    }
}

/// Finds a time in a program's output.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The first group is the time; a group named `unit` is its unit.
    expression: Regex,
    unit: Unit,
}

impl std::fmt::Display for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} {:?}", self.expression, self.unit)
    }
}

impl Reader {
    /// A reader of times in `unit`.
    ///
    /// # Errors
    /// A text that is no regular expression, or has no group.
    pub fn new(expression: &str, unit: Unit) -> Result<Self> {
        let invalid = |error: String| {
            let reason = error.lines().last().unwrap_or_default().trim().to_string();
            Error::Measurement(format!("'{expression}' does not find a time: {reason}"))
        };
        let expression = Regex::new(expression).map_err(|error| invalid(error.to_string()))?;
        if expression.captures_len() < 2 {
            return Err(invalid("it has no group in parentheses, which is the time".into()));
        }
        Ok(Reader { expression, unit })
    }
}

/// The command of an engine.
#[derive(Debug, Clone)]
pub struct EngineCommand {
    /// Name of the preset, or `command`.
    pub name: String,
    /// Program and arguments. `{model}`, `{threads}`, `{batch}`, `{folder}` (for files of the run), `{reports}` (a
    /// folder in it, whose files are read as output is, and removed before the next run) and `{script}` stand for their
    /// values.
    pub words: Vec<String>,
    /// A command that runs before, on each model.
    pub convert: Option<Vec<String>>,
    /// File that the conversion leaves in `{folder}`, where that is known.
    pub converted: Option<&'static str>,
    /// Readers of the time: the first that finds one counts.
    pub readers: Vec<Reader>,
    /// Finds the version of the engine.
    pub version: Option<Regex>,
    /// Whether the model is a folder as `ofa extract` writes it; otherwise an ONNX file.
    pub folder: bool,
    /// Engine whose rounding int8 files have.
    pub rounding: Engine,
    /// Version of ONNX's operators in a file.
    pub opset: usize,
}

/// The engine that a profile was measured with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineRecord {
    /// Name of the preset, or `command`.
    pub name: String,
    /// The command with its placeholders.
    pub command: String,
    /// Version that the engine printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Threads that the command was asked for.
    pub threads: usize,
}

/// Values of the placeholders.
pub struct Place<'a> {
    /// The exported model: a file, or a folder.
    pub model: &'a Path,
    /// Folder for files of the run.
    pub folder: &'a Path,
    /// The script of the preset `onnxruntime-python`.
    pub script: &'a Path,
    /// Threads.
    pub threads: usize,
    /// Images per run.
    pub batch: usize,
}

impl Place<'_> {
    fn reports(&self) -> PathBuf {
        self.folder.join("reports")
    }

    fn fill(&self, word: &str) -> String {
        word.replace("{model}", &self.model.display().to_string())
            .replace("{reports}", &self.reports().display().to_string())
            .replace("{folder}", &self.folder.display().to_string())
            .replace("{script}", &self.script.display().to_string())
            .replace("{threads}", &self.threads.to_string())
            .replace("{batch}", &self.batch.to_string())
    }
}

impl EngineCommand {
    /// Runs the command on a model. Returns the milliseconds that it printed, and its version where it prints one.
    ///
    /// # Errors
    /// A program that cannot be started, fails, hangs, ignores a flag, or prints no single positive time; or an
    /// interruption by `control`.
    pub fn run(&self, place: &Place, control: &mut dyn FnMut() -> ControlFlow<()>) -> Result<(f64, Option<String>)> {
        if let Some(convert) = &self.convert {
            output_of(convert, place, control)?;
            if let Some(file) = self.converted.filter(|file| !place.folder.join(file).exists()) {
                return Err(failed(convert, &format!("ended well, but wrote no {{folder}}/{file}")));
            }
        }
        let output = output_of(&self.words, place, control)?;
        let ms = self.time_in(&output).map_err(|message| {
            let last = last_line(&output).map_or(String::new(), |line| format!("; its last line: {line}"));
            failed(&self.words, &format!("{message}{last}"))
        })?;
        Ok((ms, self.version_in(&output)))
    }

    /// The milliseconds in a program's output; the error is a part of a sentence.
    pub(super) fn time_in(&self, output: &str) -> Result<f64, String> {
        let output = output.replace('\r', "");
        if let Some(line) = output.lines().find(|line| line.contains(IGNORED_FLAGS)) {
            return Err(format!("ignored flags ({})", line.trim()));
        }
        for reader in &self.readers {
            let mut found = reader.expression.captures_iter(&output);
            let Some(captures) = found.next() else { continue };
            let more = found.count();
            if more > 0 {
                return Err(format!("printed {} times; make the expression find one", more + 1));
            }
            let text = captures.get(1).map_or("", |group| group.as_str());
            let unit = captures.name("unit").map_or(Some(reader.unit), |unit| Unit::named(unit.as_str()));
            let ms = text.parse::<f64>().ok().zip(unit).map(|(time, unit)| time * unit.milliseconds());
            return ms
                .filter(|ms| ms.is_finite() && *ms > 0.0)
                .ok_or_else(|| format!("printed the time '{text}', which is no positive number"));
        }
        Err("printed no time".into())
    }

    /// The version in a program's output.
    pub(super) fn version_in(&self, output: &str) -> Option<String> {
        Some(self.version.as_ref()?.captures(output)?.get(1)?.as_str().trim().to_string())
    }
}

/// Standard output and error of a command that ended well, with its reports.
fn output_of(words: &[String], place: &Place, control: &mut dyn FnMut() -> ControlFlow<()>) -> Result<String> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Error::Measurement("the engine's command is empty".into()));
    };
    let reports = place.reports();
    let _ = fs::remove_dir_all(&reports);
    fs::create_dir_all(&reports).map_err(|error| ofa_supernet::Error::file(&reports, error))?;
    let [output, errors] = ["stdout", "stderr"].map(|name| place.folder.join(name));
    let create = |path: &Path| File::create(path).map_err(|error| ofa_supernet::Error::file(path, error));
    let mut command = Command::new(place.fill(program));
    // A group of its own, which ends together: the program may start others.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command
        .args(arguments.iter().map(|word| place.fill(word)))
        // Numbers with a decimal point, whatever the user's language.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(create(&output)?)
        .stderr(create(&errors)?)
        .spawn()
        .map_err(|error| failed(words, &format!("cannot be started: {error}")))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| failed(words, &error.to_string()))? {
            break status;
        }
        let stopped = control().is_break();
        if stopped || start.elapsed() > LONGEST {
            end(&mut child);
            return Err(match stopped {
                true => ofa_supernet::Error::Interrupted.into(),
                false => failed(words, &format!("did not end in {} minutes", LONGEST.as_secs() / 60)),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let [mut text, errors] = [&output, &errors].map(|path| read(path).unwrap_or_default());
    text.push('\n');
    text += &errors;
    if !status.success() {
        let code = match status.code() {
            // A shell's code for a missing program, and what some emulators of processors tell in place of an error.
            Some(127) => "failed with exit code 127 (program not found)".to_string(),
            Some(code) => format!("failed with exit code {code}"),
            None => "was killed".into(),
        };
        let last = last_line(&errors).or(last_line(&text)).map_or(String::new(), |line| format!(": {line}"));
        return Err(failed(words, &format!("{code}{last}")));
    }
    for report in files::list_folder(&reports)? {
        text.push('\n');
        text += &read(&report).unwrap_or_default();
    }
    Ok(text)
}

/// Ends a program with all that it started.
fn end(child: &mut Child) {
    // The shell's own `kill`, since the standard library has none for groups.
    #[cfg(unix)]
    let _ = Command::new("sh").args(["-c", &format!("kill -s KILL -- -{}", child.id())]).stderr(Stdio::null()).status();
    let _ = child.kill();
    let _ = child.wait();
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

fn failed(words: &[String], message: &str) -> Error {
    Error::Measurement(format!("the engine's command `{}` {message}", words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::DEFAULT_OPSET;

    fn command(words: &[&str], expression: &str) -> EngineCommand {
        EngineCommand {
            name: "command".into(),
            words: words.iter().map(|word| word.to_string()).collect(),
            convert: None,
            converted: None,
            readers: vec![Reader::new(expression, Unit::Microseconds).unwrap()],
            version: None,
            folder: false,
            rounding: Engine::OnnxRuntime,
            opset: DEFAULT_OPSET,
        }
    }

    #[test]
    fn exactly_one_positive_finite_time_is_read() {
        let command = command(&["x"], "time ([^ \n]+)");
        for (text, ms) in [("time 1500\n", 1.5), ("a\r\ntime 1.5e+03\r\n", 1.5), ("x time 0.5 us", 5e-4)] {
            assert!((command.time_in(text).unwrap() - ms).abs() < 1e-12);
        }
        for (text, part) in [
            ("", "printed no time"),
            ("time 0", "no positive number"),
            ("time -3", "no positive number"),
            ("time nan", "no positive number"),
            ("time inf", "no positive number"),
            ("time 1,5", "'1,5', which is no positive number"),
            ("time 1\ntime 2", "printed 2 times"),
            ("Unconsumed cmdline flags: --graf\ntime 1", "ignored flags (Unconsumed cmdline flags: --graf)"),
        ] {
            let message = command.time_in(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn expressions_need_a_group() {
        for (expression, part) in [("time", "no group in parentheses"), ("time (", "unclosed group")] {
            let message = Reader::new(expression, Unit::Seconds).unwrap_err().to_string();
            assert!(message.contains(part) && !message.contains('\n'), "{message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_command_is_run_on_the_model_and_its_failures_are_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("m"), "7500").unwrap();
        let place = Place { model: &folder.join("m"), folder, script: folder, threads: 3, batch: 2 };
        let run = |command: &EngineCommand| command.run(&place, &mut || ControlFlow::Continue(()));
        let shell =
            |script: &str| command(&["sh", "-c", script, "sh", "{model}", "{threads}", "{batch}"], "time ([^ \n]+)");
        assert_eq!(run(&shell("echo time $(cat \"$1\") $2 $3 $LC_ALL; echo end >&2")).unwrap(), (7.5, None));
        assert_eq!(run(&shell("echo time 8000 > {reports}/report.json")).unwrap().0, 8.0);
        let mut converted = shell("echo time $(cat {folder}/converted)");
        converted.convert = Some(["cp", "{model}", "{folder}/converted"].map(String::from).into());
        assert_eq!(run(&converted).unwrap().0, 7.5);
        let missing = run(&command(&["no-such-engine"], "(a)")).unwrap_err().to_string();
        let [started, found] = ["`no-such-engine` cannot be started: ", "(program not found)"];
        assert!(missing.contains(started) || missing.contains(found), "{missing}");
        for (command, part) in [
            (shell("exec no-such-engine 2> /dev/null"), "failed with exit code 127 (program not found)"),
            (shell("echo time 3; echo no memory >&2; exit 3"), "failed with exit code 3: no memory"),
            (shell("echo fine; echo done >&2"), "printed no time; its last line: done"),
        ] {
            let message = run(&command).unwrap_err().to_string();
            assert!(message.contains(part) && !message.contains('\n'), "{message}");
        }
        // What the command has started ends with it.
        let started = folder.join("started");
        let wrapper = shell("sleep 60 & echo $! > {folder}/part; mv {folder}/part {folder}/started; wait");
        let stop = &mut || if started.exists() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        assert!(wrapper.run(&place, stop).unwrap_err().is_interrupted());
        let id = fs::read_to_string(&started).unwrap();
        // Where nobody asks for its end, a dead process stays as a zombie.
        let status = || fs::read_to_string(format!("/proc/{}/status", id.trim()));
        let start = Instant::now();
        while status().is_ok_and(|status| !status.contains("State:\tZ")) {
            assert!(start.elapsed() < Duration::from_secs(20), "{id}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
