//! Assignment of cores to the processes on one machine.

use super::shard;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A set of core numbers; as text in Linux's form, `0-3,8`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cores(pub BTreeSet<usize>);

impl Cores {
    /// Binds this thread, and threads that it starts later, to these cores. Does nothing on systems other than Linux.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn bind(&self) -> std::io::Result<()> {
        #[cfg(all(feature = "mpi", target_os = "linux"))]
        {
            let mut set = rustix::thread::CpuSet::new();
            self.0.iter().filter(|&&core| core < rustix::thread::CpuSet::MAX_CPU).for_each(|&core| set.set(core));
            rustix::thread::sched_setaffinity(None, &set)?;
        }
        Ok(())
    }
}

impl FromStr for Cores {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut cores = BTreeSet::new();
        for range in text.trim().split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            cores.extend(first.parse::<usize>()?..=last.parse::<usize>()?);
        }
        Ok(Cores(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for &core in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == core => *last = core,
                _ => ranges.push((core, core)),
            }
        }
        let text = |&(first, last): &(usize, usize)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        f.write_str(&ranges.iter().map(text).collect::<Vec<_>>().join(","))
    }
}

/// The machine and cores of one rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Name of the machine.
    pub host: String,
    /// Cores that this rank may use.
    pub allowed: Cores,
    /// Cores that this rank's launcher may use: all of the job's on this machine.
    pub launcher: Cores,
}

impl Placement {
    /// Describes this process; `None` if the system does not tell (it is not Linux).
    pub fn here() -> Option<Placement> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_string();
        #[cfg(unix)]
        let parent = format!("/proc/{}/status", std::os::unix::process::parent_id());
        #[cfg(not(unix))]
        let parent = String::new();
        let allowed = allowed("/proc/self/status")?;
        let launcher = self::allowed(&parent).unwrap_or_else(|| allowed.clone());
        Some(Placement { host, allowed, launcher })
    }

    /// Parses the text that [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Placement> {
        let mut parts = text.split(' ');
        let (host, allowed, launcher) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Placement { host: host.to_string(), allowed: allowed.parse().ok()?, launcher: launcher.parse().ok()? })
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {} {}", self.host, self.allowed, self.launcher)
    }
}

fn allowed(status: &str) -> Option<Cores> {
    let text = std::fs::read_to_string(status).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.parse().ok()
}

/// The cores of rank `rank`, one thread each: the rank's own, or its share of those that several ranks may use. `None`,
/// which means that nothing is bound, if there are more ranks than cores, or if ranks share only some of their cores.
pub fn divide(placements: &[Placement], rank: usize) -> Option<Cores> {
    let own = &placements[rank];
    let neighbours: Vec<usize> = (0..placements.len()).filter(|&other| placements[other].host == own.host).collect();
    let disjoint = |other: &&usize| placements[**other].allowed.0.is_disjoint(&own.allowed.0);
    let sharing: Vec<&usize> = neighbours.iter().filter(|other| !disjoint(other)).collect();
    if sharing.iter().any(|&&other| placements[other].allowed != own.allowed) || sharing.len() > own.allowed.0.len() {
        return None;
    }
    let index = sharing.iter().position(|&&other| other == rank)?;
    let range = shard(own.allowed.0.len(), index, sharing.len());
    Some(Cores(own.allowed.0.iter().copied().skip(range.start).take(range.len()).collect()))
}

/// A sentence for each machine on which the launch leaves cores idle or runs more threads than cores; `threads` is the
/// number of threads per rank, if one was requested.
pub fn hints(placements: &[Placement], threads: Option<usize>) -> Vec<String> {
    let hosts: BTreeSet<&str> = placements.iter().map(|placement| placement.host.as_str()).collect();
    let mut hints = Vec::new();
    for host in hosts {
        let here: Vec<usize> = (0..placements.len()).filter(|&rank| placements[rank].host == host).collect();
        let all: BTreeSet<usize> = here.iter().flat_map(|&rank| placements[rank].launcher.0.iter().copied()).collect();
        let used: BTreeSet<usize> = here.iter().flat_map(|&rank| placements[rank].allowed.0.iter().copied()).collect();
        let of = |rank: usize| threads.unwrap_or_else(|| divide(placements, rank).map_or(1, |cores| cores.0.len()));
        let (total, ranks): (usize, usize) = (here.iter().map(|&rank| of(rank)).sum(), here.len());
        let processes = if ranks == 1 { "process" } else { "processes" };
        if total > used.len() {
            hints.push(format!(
                "{host}: {ranks} {processes} with {total} threads in all share {} of {} cores; start fewer, or bind them to more (mpirun --bind-to none)",
                used.len(),
                all.len()
            ));
        } else if total < all.len() {
            hints.push(format!(
                "{host}: {ranks} {processes} with {total} threads in all leave {} of {} cores idle; start more, or let each use more: mpirun \
                 --bind-to none, srun --cpus-per-task, no --threads",
                all.len() - total,
                all.len()
            ));
        }
    }
    hints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(host: &str, allowed: &str) -> Placement {
        Placement { host: host.into(), allowed: allowed.parse().unwrap(), launcher: "0-7".parse().unwrap() }
    }

    fn divided(placements: &[Placement]) -> Vec<String> {
        (0..placements.len())
            .map(|rank| divide(placements, rank).map_or("none".into(), |cores| cores.to_string()))
            .collect()
    }

    #[test]
    fn lists_are_read_and_written() {
        for text in ["0", "0-3,8", "1,3-4,63"] {
            assert_eq!(text.parse::<Cores>().unwrap().to_string(), text);
        }
        assert!("0-x".parse::<Cores>().is_err());
        let placement = placement("node1", "0-3,5");
        assert_eq!(Placement::parse(&placement.to_string()), Some(placement));
    }

    #[test]
    fn unbound_ranks_of_a_machine_divide_its_cores() {
        let placements = [placement("a", "0-7"), placement("b", "0-7"), placement("a", "0-7"), placement("a", "0-7")];
        assert_eq!(divided(&placements), ["0-1", "0-7", "2-4", "5-7"]);
        assert!(hints(&placements, None).is_empty(), "{:?}", hints(&placements, None));
    }

    #[test]
    fn bound_ranks_keep_their_cores_and_idle_ones_are_told() {
        let placements = [placement("a", "0"), placement("a", "1")];
        assert_eq!(divided(&placements), ["0", "1"]);
        let hint = &hints(&placements, None)[0];
        assert!(hint.contains("a: 2 processes with 2 threads in all leave 6 of 8 cores idle"), "{hint}");
    }

    #[test]
    fn doubled_cores_are_told() {
        let crowd: Vec<Placement> = (0..9).map(|_| placement("a", "0-7")).collect();
        assert_eq!(divided(&crowd)[4], "none");
        assert!(hints(&crowd, None)[0].contains("9 threads in all share 8 of 8 cores"));
        let pair = [placement("a", "0-7"), placement("a", "0-7")];
        assert!(hints(&pair, Some(8))[0].contains("16 threads in all share 8"));
        assert_eq!(divided(&[placement("a", "0-3"), placement("a", "2-7")]), ["none", "none"]);
    }
}
