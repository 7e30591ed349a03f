//! Ways to run a script on another machine: the system's `ssh`, and `adb`.

use super::words;
use crate::arguments::shell::quote;
use anyhow::{Result, bail, ensure};
use std::path::Path;
use std::process::Command;

/// A way to another machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Transport {
    Ssh { command: Vec<String>, destination: String, port: Option<u16> },
    Adb { command: Vec<String>, serial: Option<String> },
}

impl Transport {
    /// Parses `ssh:[user@]host[:port]` or `adb:[SERIAL]`.
    ///
    /// # Errors
    /// Another form, or a command without words.
    pub fn parse(text: &str, ssh: &str, adb: &str) -> Result<Self> {
        let command = |flag: &str, text: &str| {
            let words = words(flag, text)?;
            ensure!(!words.is_empty(), "{flag} is empty; expected a command");
            Ok(words)
        };
        let expected = "expected ssh:[user@]host[:port] or adb:[SERIAL]";
        match text.split_once(':') {
            Some(("ssh", rest)) => {
                // An address in brackets may have a user before it, as a name may.
                let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
                let (host, port) = host_and_port(rest);
                let destination = user.map_or(host.to_string(), |user| format!("{user}@{host}"));
                let port = match port.map(str::parse) {
                    None => None,
                    Some(Ok(port)) if port > 0 => Some(port),
                    Some(_) => bail!("--on {text}: the port must be a number from 1 to 65535; {expected}"),
                };
                // A host that begins with a dash would be an option of ssh.
                ensure!(!host.is_empty() && !destination.starts_with('-'), "--on {text}: there is no host; {expected}");
                Ok(Transport::Ssh { command: command("--ssh", ssh)?, destination, port })
            }
            Some(("adb", serial)) => {
                ensure!(
                    !serial.starts_with('-'),
                    "--on {text}: a serial number does not begin with a dash; {expected}"
                );
                let serial = (!serial.is_empty()).then(|| serial.to_string());
                Ok(Transport::Adb { command: command("--adb", adb)?, serial })
            }
            _ => bail!("--on {text}: {expected}"),
        }
    }

    /// The command that runs `script` in a POSIX shell there, with its own standard streams.
    pub fn shell(&self, script: &str) -> Command {
        let script = format!("sh -c {}", quote(script));
        let mut command = self.start();
        match self {
            Transport::Ssh { destination, port, .. } => {
                // No questions, since nobody may be there to answer; a dead connection ends.
                let options = ["BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=4"];
                let options = options.into_iter().chain(["StrictHostKeyChecking=accept-new", "LogLevel=ERROR"]);
                command.args(options.flat_map(|option| ["-o", option]));
                command.arg("-T");
                if let Some(port) = port {
                    command.args(["-p", &port.to_string()]);
                }
                command.arg(destination).arg(script);
            }
            Transport::Adb { .. } => {
                command.args(["shell", &script]);
            }
        }
        command
    }

    /// The command that copies a file there, if it is another than `shell`.
    pub fn push(&self, file: &Path, to: &str) -> Option<Command> {
        let Transport::Adb { .. } = self else { return None };
        let mut command = self.start();
        command.arg("push").arg(file).arg(to);
        Some(command)
    }

    fn start(&self) -> Command {
        let (Transport::Ssh { command: words, .. } | Transport::Adb { command: words, .. }) = self;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if let Transport::Adb { serial: Some(serial), .. } = self {
            command.args(["-s", serial]);
        }
        command
    }

    /// Folders to work in, the first first.
    pub fn folders(&self) -> &'static [&'static str] {
        match self {
            Transport::Ssh { .. } => &["${TMPDIR:-/tmp}", "/var/tmp", "$HOME"],
            Transport::Adb { .. } => &["/data/local/tmp"],
        }
    }

    /// Lines of a script before a measurement. A phone keeps one clock meanwhile, where it can, and waits at most five
    /// minutes until it no longer throttles for heat.
    pub fn prepare(&self) -> &'static str {
        match self {
            Transport::Ssh { .. } => "",
            Transport::Adb { .. } => {
                "f() { cmd power set-fixed-performance-mode-enabled $1 >/dev/null 2>&1; }\n\
                 f true\n\
                 trap 'f false' EXIT\n\
                 trap 'exit 129' HUP\n\
                 trap 'exit 143' TERM\n\
                 i=0; while test $i -lt 60 && dumpsys thermalservice 2>/dev/null | grep -q '^Thermal Status: [1-9]'; do sleep 5; i=$((i+1)); done\n"
            }
        }
    }

    /// A command line by which the user can try the connection.
    pub fn try_line(&self) -> String {
        let (Transport::Ssh { command, .. } | Transport::Adb { command, .. }) = self;
        let mut line: Vec<String> = command.iter().map(|word| quote(word)).collect();
        match self {
            Transport::Ssh { destination, port, .. } => {
                port.iter().for_each(|port| line.extend(["-p".into(), port.to_string()]));
                line.extend([quote(destination), "true".into()]);
            }
            Transport::Adb { serial, .. } => {
                serial.iter().for_each(|serial| line.extend(["-s".into(), quote(serial)]));
                line.extend(["shell", "true"].map(String::from));
            }
        }
        line.join(" ")
    }
}

/// Splits `host:port`; an IPv6 address with a port stands in brackets.
fn host_and_port(text: &str) -> (&str, Option<&str>) {
    // The address without its brackets, as ssh takes it.
    if let Some((host, after)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, after.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

/// The mask of cores such as `4-7` or `0,2`, in hexadecimal, as every `taskset` takes it.
///
/// # Errors
/// Another form, or a core beyond 127.
pub fn core_mask(cores: &str) -> Result<String> {
    let mut mask = 0u128;
    for part in cores.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last < 128 => (first..=last).for_each(|core| mask |= 1 << core),
            _ => bail!("--cores {cores}: '{part}' is no core or range of cores; expected such as 4-7 or 0,2"),
        }
    }
    Ok(format!("{mask:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(command: &Command) -> String {
        let words = [command.get_program()].into_iter().chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn machines_are_parsed_and_reached_by_these_commands() {
        let ssh = |text| Transport::parse(text, "ssh -F 'my file'", "adb").unwrap();
        let command = line(&ssh("ssh:pi@board:2222").shell("echo 'a'"));
        assert!(command.starts_with("ssh -F my file -o BatchMode=yes -o ConnectTimeout=15"), "{command}");
        assert!(command.ends_with(r"-T -p 2222 pi@board sh -c 'echo '\''a'\'''"), "{command}");
        assert!(line(&ssh("ssh:board").shell("true")).ends_with("-T board sh -c true"));
        assert!(line(&ssh("ssh:[fe80::1]:22").shell("true")).ends_with("-T -p 22 fe80::1 sh -c true"));
        assert!(line(&ssh("ssh:me@[fe80::1]:22").shell("true")).ends_with("-T -p 22 me@fe80::1 sh -c true"));
        assert!(line(&ssh("ssh:fe80::1").shell("true")).ends_with("-T fe80::1 sh -c true"));
        let adb = Transport::parse("adb:1a2b", "ssh", "adb").unwrap();
        assert_eq!(line(&adb.shell("uname -m")), "adb -s 1a2b shell sh -c 'uname -m'");
        assert_eq!(
            line(&adb.push(Path::new("ofa"), "/data/local/tmp/x").unwrap()),
            "adb -s 1a2b push ofa /data/local/tmp/x"
        );
        assert_eq!(line(&Transport::parse("adb:", "ssh", "adb").unwrap().shell("id")), "adb shell sh -c id");
    }

    #[test]
    fn other_texts_are_refused() {
        for (text, part) in [
            ("board", "expected ssh:"),
            ("ssh:", "no host"),
            ("ssh:pi@", "no host"),
            ("ssh:-oProxyCommand=x", "no host"),
            ("ssh:board:0", "1 to 65535"),
            ("ssh:board:ssh", "1 to 65535"),
            ("adb:-e", "dash"),
        ] {
            let message = Transport::parse(text, "ssh", "adb").unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(Transport::parse("ssh:board", "ssh 'x", "adb").is_err());
        assert!(Transport::parse("ssh:board", " ", "adb").is_err());
    }

    #[test]
    fn cores_become_a_mask() {
        assert_eq!(
            ["4-7", "0", "0,2", "70"].map(|cores| core_mask(cores).unwrap()),
            ["f0", "1", "5", "400000000000000000"]
        );
        for wrong in ["", "a", "3-1", "128", "1-"] {
            assert!(core_mask(wrong).is_err(), "{wrong}");
        }
    }
}
