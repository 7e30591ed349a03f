//! Running this program on another machine: its binary is copied there (or found there), started, watched and cleaned
//! up after.
//!
//! Everything lives in one folder of the other machine, named after the work, so that the same work finds its
//! unfinished files again after a lost connection. A script's output is taken between two marks, since a login may
//! print lines of its own, and its exit code comes with the second mark, since old versions of `adb` do not pass it on.
//! The program there ends when its standard input does, so that a lost connection leaves nothing running.
//!
//! | file | concern |
//! | --- | --- |
//! | `program` | the binary that runs there |
//! | `transport` | ways to run a script there: `ssh` and `adb` |

mod program;
mod transport;

use crate::arguments::shell::quote;
use crate::output::terminal;
use crate::process::interrupt;
use anyhow::{Context, Result, anyhow, bail, ensure};
use ofa_supernet::files::checksum;
use program::Program;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use transport::Transport;

/// The other machine, and how to reach it.
#[derive(clap::Args, Debug, Clone)]
pub struct RemoteArgs {
    /// Measure on another machine: ssh:[user@]host[:port] or adb:[SERIAL].
    #[arg(long = "on", value_name = "MACHINE")]
    on: Option<String>,
    /// Command in place of `ssh`, such as 'ssh -F FILE'.
    #[arg(long, value_name = "COMMAND", default_value = "ssh", requires = "on")]
    ssh: String,
    /// Command in place of `adb`.
    #[arg(long, value_name = "COMMAND", default_value = "adb", requires = "on")]
    adb: String,
    /// Binary of this program for the other machine, if that has another architecture.
    #[arg(long, value_name = "FILE", requires = "on")]
    program: Option<PathBuf>,
    /// Command to put before the program there, such as an emulator.
    #[arg(long, value_name = "COMMAND", requires = "on", default_value = "")]
    run_with: String,
    /// Cores to run on there, such as 4-7 or 0,2.
    #[arg(long, value_name = "CORES", requires = "on")]
    cores: Option<String>,
}

impl RemoteArgs {
    /// The machine that the flags name; `None` for this one.
    ///
    /// # Errors
    /// Flags that name no machine.
    pub fn machine(&self) -> Result<Option<Remote>> {
        let Some(on) = &self.on else { return Ok(None) };
        let transport = Transport::parse(on, &self.ssh, &self.adb)?;
        let mut launcher = words("--run-with", &self.run_with)?;
        if let Some(cores) = &self.cores {
            launcher.splice(0..0, ["taskset".to_string(), transport::core_mask(cores)?]);
        }
        let emulated = !self.run_with.trim().is_empty();
        Ok(Some(Remote { name: on.clone(), transport, launcher, emulated, program: self.program.clone() }))
    }
}

/// A command's words, as a shell would part them.
fn words(flag: &str, command: &str) -> Result<Vec<String>> {
    shlex::split(command).with_context(|| format!("{flag} '{command}': a quotation mark is not closed"))
}

/// Another machine.
pub struct Remote {
    /// As the user named it.
    name: String,
    transport: Transport,
    /// Words before the program.
    launcher: Vec<String>,
    /// Whether the launcher may run programs of another architecture.
    emulated: bool,
    program: Option<PathBuf>,
}

/// End of a script on another machine.
enum Outcome {
    /// Lines between the marks, and the exit code.
    Ended(Vec<String>, i32),
    /// No second mark came; the last words of the connection.
    Lost(String),
}

/// Lines that mark where a script's own output begins and ends.
const BEGIN: &str = "ofa-remote-begin";
const END: &str = "ofa-remote-end";
/// Attempts to reconnect, with pauses that double from two seconds on.
const RECONNECTIONS: u32 = 5;

impl Remote {
    /// Prepares the folder for the work named `work` and puts the program there, unless it is there already.
    ///
    /// # Errors
    /// The machine cannot be reached, has another architecture, or has no folder from which programs run.
    pub fn open(&self, work: &str) -> Result<Workplace<'_>> {
        let program = Program::read(self.program.as_deref())?;
        let arch = self.ask("uname -m")?;
        if !self.emulated {
            program.check(&arch, &self.name)?;
        }
        // Another launcher, such as one for other cores, makes it other work.
        let launcher = self.launcher.join(" ");
        let folder = match launcher.is_empty() {
            true => self.folder(work)?,
            false => self.folder(&format!("{work}-{:08x}", checksum(launcher.as_bytes())))?,
        };
        let place = Workplace { remote: self, program: format!("{folder}/{}", program.file_name()), folder };
        // The name holds the content's checksum, so that a file of that name and length is this program.
        let (length, file) = (program.bytes().len(), quote(&place.program));
        let there = format!("test -x {file} && test $(wc -c < {file}) -eq {length}");
        if !self.answers(&there)? {
            terminal::note(format!("copying the program to {} ({:.1} MB)", self.name, length as f64 / 1e6));
            match self.transport.push(program.path(), &place.program) {
                Some(command) => self.pushed(command)?,
                None => place.write(&place.program, program.bytes())?,
            }
            self.ask(&format!("chmod 700 {file} && {there} && echo copied"))?;
        }
        Ok(place)
    }

    /// The first folder in which programs run: /tmp and others are mounted without that right on some machines.
    fn folder(&self, work: &str) -> Result<String> {
        let tries = self.transport.folders().iter().map(|base| {
            format!(
                "d=\"{base}/ofa-{work}\"; if mkdir -p \"$d\" 2>/dev/null && chmod 700 \"$d\" && printf '#!/bin/sh\\nexit 0\\n' > \
                 \"$d/try\" && chmod 700 \"$d/try\" && \"$d/try\" 2>/dev/null; then rm -f \"$d/try\"; echo \"$d\"; exit 0; fi; rm -f \"$d/try\"; \
                 rmdir \"$d\" 2>/dev/null"
            )
        });
        let script = tries.collect::<Vec<_>>().join("\n") + "\nexit 1";
        self.ask(&script).with_context(|| {
            let folders = self.transport.folders().join(", ");
            format!("{}: none of {folders} is a folder where files can be written and run", self.name)
        })
    }

    /// The single line that a short script prints.
    fn ask(&self, script: &str) -> Result<String> {
        let (lines, code) = self.short(script, &[])?;
        match (code, lines.last()) {
            (0, Some(line)) => Ok(line.clone()),
            _ => bail!("{}: the command `{}` failed with exit code {code}", self.name, first_line(script)),
        }
    }

    /// Whether a short script succeeds.
    fn answers(&self, script: &str) -> Result<bool> {
        Ok(self.short(script, &[])?.1 == 0)
    }

    /// Runs a short script with `input`.
    fn short(&self, script: &str, input: &[u8]) -> Result<(Vec<String>, i32)> {
        match self.attempt(script, Some(input), &mut |_| {})? {
            Outcome::Ended(lines, code) => Ok((lines, code)),
            Outcome::Lost(words) => {
                interrupt::check()?;
                Err(self.unreachable(&words))
            }
        }
    }

    fn unreachable(&self, words: &str) -> anyhow::Error {
        let said = if words.is_empty() { "it ended without a word".into() } else { words.to_string() };
        anyhow!("{}: no connection: {said}; try it with `{}`", self.name, self.transport.try_line())
    }

    /// Runs a script there, with `input` as its standard input; without, the input stays open until the script ends.
    /// `on_line` sees each line as it comes.
    fn attempt(&self, script: &str, input: Option<&[u8]>, on_line: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let marked = format!("echo {BEGIN}\n( {script}\n)\nprintf '\\n{END} %d\\n' $?");
        let mut command = self.transport.shell(&marked);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("{}: cannot start `{program}`", self.name))?;
        let mut stdin = child.stdin.take();
        let errors = child.stderr.take().map(|stderr| std::thread::spawn(move || last_words(stderr)));
        let (send, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || read_lines(stdout, &send));
        }
        if let Some(input) = input {
            write_all(stdin.take(), input);
        }
        let outcome = follow(&lines, on_line);
        // Without it a script that waits for its input ends.
        drop(stdin);
        end(&mut child);
        let words = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
        Ok(match outcome {
            Some((lines, code)) => Outcome::Ended(lines, code),
            None => Outcome::Lost(words),
        })
    }

    /// Runs a command of the transport that copies a file.
    fn pushed(&self, mut command: std::process::Command) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{}: cannot start `{program}`", self.name))?;
        let errors = child.stderr.take().map(|stderr| std::thread::spawn(move || last_words(stderr)));
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if interrupt::requested() {
                end(&mut child);
                interrupt::check()?;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let words = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
        ensure!(status.success(), "{}: the program cannot be copied there: {words}", self.name);
        Ok(())
    }
}

/// A folder of another machine with the program in it.
pub struct Workplace<'a> {
    remote: &'a Remote,
    folder: String,
    program: String,
}

impl Workplace<'_> {
    /// Writes a file of the folder, whole or not at all.
    ///
    /// # Errors
    /// A lost connection, or a full disk there.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write(&format!("{}/{name}", self.folder), bytes)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let (file, part) = (quote(path), quote(&format!("{path}.part")));
        let script = format!(
            "mkdir -p \"$(dirname {file})\" && cat > {part} && test $(wc -c < {part}) -eq {} && mv {part} {file} || \
             {{ rm -f {part}; exit 1; }}",
            bytes.len()
        );
        match self.remote.short(&script, bytes)? {
            (_, 0) => Ok(()),
            (_, code) => {
                bail!("{}: {path} cannot be written there (exit code {code}); is the disk full?", self.remote.name)
            }
        }
    }

    /// Text of a file of the folder.
    ///
    /// # Errors
    /// A lost connection, or no such file.
    pub fn get(&self, name: &str) -> Result<String> {
        let path = format!("{}/{name}", self.folder);
        match self.insist(&format!("cat {}", quote(&path)), Some(&[]), &mut |_| {})? {
            (lines, 0) => Ok(lines.join("\n")),
            (_, code) => bail!("{}: {path} cannot be read there (exit code {code})", self.remote.name),
        }
    }

    /// Runs the program there in the folder; `on_line` sees each line of its output, which is returned. A lost
    /// connection is taken up again, and the program started once more, since it resumes.
    ///
    /// # Errors
    /// The program's own error, a connection that stays lost, or an interruption here.
    pub fn run(&self, arguments: &[String], on_line: &mut dyn FnMut(&str)) -> Result<Vec<String>> {
        let code = match self.insist(&self.script(arguments), None, on_line)? {
            (lines, 0) => return Ok(lines),
            (_, code) => code,
        };
        interrupt::check()?;
        let errors = self.get("errors").unwrap_or_default();
        // Only a measurement in progress is worth its room there. What a signal ended may have begun anew already.
        if code < 128 {
            let rest = format!("ls {0}/run/devices/*.unfinished >/dev/null 2>&1 || rm -rf {0}", quote(&self.folder));
            let _ = self.remote.short(&rest, &[]);
        }
        let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let said = last.strip_prefix("error: ").unwrap_or(last);
        bail!("{}: the program failed there with exit code {code}: {said}", self.remote.name)
    }

    /// Runs a script there, again where the connection is lost.
    ///
    /// # Errors
    /// A connection that stays lost, or an interruption here.
    fn insist(&self, script: &str, input: Option<&[u8]>, on_line: &mut dyn FnMut(&str)) -> Result<(Vec<String>, i32)> {
        let name = &self.remote.name;
        let mut lost = 0;
        loop {
            let words = match self.remote.attempt(script, input, on_line)? {
                Outcome::Ended(lines, code) => return Ok((lines, code)),
                Outcome::Lost(words) => words,
            };
            self.check()?;
            if lost == RECONNECTIONS {
                return Err(self.remote.unreachable(&words)).with_context(|| {
                    format!("what was measured is kept in {} there; run the same command to resume", self.folder)
                });
            }
            lost += 1;
            terminal::note(format!("{name}: the connection was lost ({words}); connecting again"));
            let pause = Duration::from_secs(1 << lost);
            let start = Instant::now();
            while start.elapsed() < pause {
                self.check()?;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Fails if a stop is requested.
    fn check(&self) -> Result<()> {
        match interrupt::requested() {
            true => Err(interrupt::stopped(format!(
                "stopped; a measurement in progress is kept in {} of {}; run the same command to resume",
                self.folder, self.remote.name
            ))),
            false => Ok(()),
        }
    }

    /// The script that runs the program: it ends what an earlier connection left, and ends with its standard input.
    fn script(&self, arguments: &[String]) -> String {
        let words = self.remote.launcher.iter().chain([&self.program]).chain(arguments);
        let line = words.map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        // A number in `pid` may have gone to another program, after a restart of the machine.
        format!(
            "cd {folder} || exit 1\n\
             export LC_ALL=C\n\
             p=$(cat pid 2>/dev/null)\n\
             a=$({{ tr '\\0' ' ' < /proc/$p/cmdline || ps -ww -o args= -p $p; }} 2>/dev/null)\n\
             case $a in *{program}*) kill -TERM $p; for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 $p 2>/dev/null || break; sleep 1; done;; esac\n\
             {prepare}exec 3<&0\n\
             {line} </dev/null 2>errors &\n\
             p=$!\n\
             echo $p > pid\n\
             ( cat <&3 >/dev/null 2>&1; kill -TERM $p 2>/dev/null ) >/dev/null 2>&1 &\n\
             w=$!\n\
             wait $p\n\
             c=$?\n\
             rm -f pid\n\
             kill $w 2>/dev/null\n\
             exit $c",
            folder = quote(&self.folder),
            program = quote(self.program.rsplit('/').next().unwrap_or_default()),
            prepare = self.remote.transport.prepare(),
        )
    }

    /// Removes the folder with all that is in it. What is here by now is worth more than order there, so a failure is a
    /// warning.
    pub fn close(self) {
        let removed = self.remote.short(&format!("rm -rf {}", quote(&self.folder)), &[]);
        if !matches!(removed, Ok((_, 0))) {
            terminal::warning(format!("{}: {} was not removed there", self.remote.name, self.folder));
        }
    }
}

fn first_line(script: &str) -> &str {
    script.lines().next().unwrap_or_default()
}

/// Sends the lines of `output` without the ends that Windows and terminals put there.
fn read_lines(output: impl Read, lines: &mpsc::Sender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line);
        if lines.send(text.trim_end_matches(['\r', '\n']).to_string()).is_err() {
            return;
        }
        line.clear();
    }
}

/// The last line that is not empty.
fn last_words(errors: impl Read) -> String {
    let lines = BufReader::new(errors).lines().map_while(|line| line.ok());
    lines.map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).last().unwrap_or_default()
}

/// Writes everything; a reader that has gone shows in its missing last mark.
fn write_all(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin {
        for part in input.chunks(1 << 16) {
            if interrupt::requested() || stdin.write_all(part).is_err() {
                return;
            }
        }
    }
}

/// The lines between the marks and the exit code; `None` if the second mark does not come or a signal stops this
/// program.
fn follow(lines: &mpsc::Receiver<String>, on_line: &mut dyn FnMut(&str)) -> Option<(Vec<String>, i32)> {
    let mut found: Option<Vec<String>> = None;
    loop {
        let line = match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) if interrupt::requested() => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => continue,
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
        };
        // Lines may come faster than the silence in which a signal is seen; the last one is seen all the same.
        if interrupt::requested() && !line.starts_with(END) {
            return None;
        }
        let Some(found) = &mut found else {
            if line == BEGIN {
                found = Some(Vec::new());
            }
            continue;
        };
        if let Some(code) = line.strip_prefix(END).and_then(|code| code.trim().parse().ok()) {
            // The mark stands on a line of its own, so that a line before it was ended for it.
            if found.last().is_some_and(|line| line.is_empty()) {
                found.pop();
            }
            return Some((std::mem::take(found), code));
        }
        on_line(&line);
        found.push(line);
    }
}

/// Waits for the end of the connection's process for a moment, then ends it.
fn end(child: &mut Child) {
    for _ in 0..20 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
}
