//! Several processes that train and measure together, on one machine or on many; MPI calls them "ranks".
//!
//! [`Ranks`] is a plain value. A single process is one rank, for which every method returns at once, so that the code
//! is the same for one rank and for a thousand. The engine is MPI, behind the feature `mpi`.
//!
//! Methods that mention "all ranks" are collective: every rank must call them, in the same order. So whatever decides
//! the order of such calls must follow from values that all ranks share.
//!
//! | file | concern |
//! | --- | --- |
//! | `mpi`, `none` | MPI, and its place in programs without it |
//! | `cores` | cores of the processes on one machine |

mod cores;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "mpi")]
use self::mpi::Link;
#[cfg(not(feature = "mpi"))]
mod none;
#[cfg(not(feature = "mpi"))]
use none::Link;

pub use cores::{Cores, Placement, divide, hints};

use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// The processes that work together. Clones refer to the same processes; dropping the last one ends MPI.
#[derive(Clone, Default)]
pub struct Ranks(Option<Arc<Joined>>);

struct Joined {
    link: Link,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Communication of one rank so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Bytes passed to collective calls (not what the algorithm sends for them).
    pub bytes: u64,
    /// Seconds for which computation waited in collective calls, slower ranks included.
    pub seconds: f64,
}

impl std::fmt::Debug for Ranks {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.count())
    }
}

impl Ranks {
    /// A single process.
    pub fn alone() -> Self {
        Ranks(None)
    }

    /// The processes that `mpirun` or `srun` started with this one; a single process if it was not started by them.
    ///
    /// # Errors
    /// The program was started as one of several, but was built without MPI, or MPI does not see the others.
    pub fn join() -> Result<Self> {
        let Some(started) = started_together(|name| std::env::var(name).ok()) else { return Ok(Ranks(None)) };
        let link = Link::join()?;
        if link.count() == 1 {
            return Err(Error::Ranks(format!(
                "the launcher started {started} processes, but to MPI this one is alone; start them with the mpirun of the MPI that this program was \
                 built with, or with `srun --mpi=pmix`"
            )));
        }
        Ok(Ranks(Some(Arc::new(Joined { link, bytes: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) }))))
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |joined| joined.link.rank())
    }

    /// Number of processes.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |joined| joined.link.count())
    }

    /// Whether this rank is the one that writes files and shows progress.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there are other ranks.
    pub fn is_distributed(&self) -> bool {
        self.0.is_some()
    }

    /// This rank's share of `0..total`: a range; the shares of all ranks are adjacent, and their lengths differ by at
    /// most one.
    pub fn shard(&self, total: usize) -> Range<usize> {
        shard(total, self.rank(), self.count())
    }

    /// Replaces values by their sums over all ranks; the result has the same bits on every rank.
    pub fn sum(&self, values: &mut [f32]) {
        self.collective(size_of_val(values), |link| link.sum_f32(values));
    }

    /// Computes [`sum`](Self::sum) on another thread while this one does `work`, which must not make collective calls.
    /// The other thread uses little processor time: it sleeps between polls of the network.
    ///
    /// After `work` this thread waits for the sums, whatever `work` returns, so that an error in it leaves no rank
    /// waiting.
    pub fn sum_during<T>(&self, values: &mut [f32], work: impl FnOnce() -> T) -> T {
        let Some(joined) = &self.0 else { return work() };
        let bytes = size_of_val(values);
        let worked = AtomicBool::new(false);
        let (result, start) = std::thread::scope(|scope| {
            let other = scope.spawn(|| joined.link.sum_f32_patiently(values, &worked));
            let result = work();
            worked.store(true, Ordering::Release);
            other.thread().unpark();
            (result, Instant::now())
        });
        joined.count(bytes, start);
        result
    }

    /// Replaces values by their sums over all ranks; the result has the same bits on every rank.
    pub fn sum_f64(&self, values: &mut [f64]) {
        self.collective(size_of_val(values), |link| link.sum_f64(values));
    }

    /// The first rank's number, on all ranks.
    pub fn broadcast_f64(&self, number: f64) -> f64 {
        let mut sum = [if self.is_first() { number } else { 0.0 }];
        self.sum_f64(&mut sum);
        sum[0]
    }

    /// For each flag, whether it is set on any of all ranks.
    pub fn any<const N: usize>(&self, flags: [bool; N]) -> [bool; N] {
        let mut sums = flags.map(|flag| if flag { 1.0 } else { 0.0 });
        self.sum_f64(&mut sums);
        sums.map(|sum| sum > 0.0)
    }

    /// The numbers of all ranks, by rank.
    pub fn gather(&self, number: u64) -> Vec<u64> {
        let mut all = vec![number];
        self.collective(size_of::<u64>(), |link| all = link.gather(number));
        all
    }

    /// The texts of all ranks, by rank.
    pub fn gather_text(&self, text: &str) -> Vec<String> {
        let mut all = vec![text.to_string()];
        self.collective(text.len(), |link| all = link.gather_text(text));
        all
    }

    /// The first rank's bytes, on all ranks.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let mut bytes = bytes;
        self.collective(bytes.len(), |link| link.broadcast(&mut bytes));
        bytes
    }

    /// Waits until all ranks have reached this call.
    pub fn barrier(&self) {
        self.collective(0, |link| drop(link.gather(0)));
    }

    /// Fails on all ranks if `number` differs between any of them.
    ///
    /// # Errors
    /// [`Error::Ranks`] with `what` and the ranks that differ from rank 0.
    pub fn check_equal(&self, number: u64, what: &str, advice: &str) -> Result<()> {
        let all = self.gather(number);
        let other: Vec<String> =
            (1..all.len()).filter(|&rank| all[rank] != all[0]).map(|rank| rank.to_string()).collect();
        if other.is_empty() {
            return Ok(());
        }
        let ranks = if other.len() == 1 { "rank" } else { "ranks" };
        Err(Error::Ranks(format!("{what}: {ranks} {} differ from rank 0; {advice}", other.join(", "))))
    }

    /// Communication of this rank so far.
    pub fn traffic(&self) -> Traffic {
        self.0.as_ref().map_or(Traffic::default(), |joined| Traffic {
            bytes: joined.bytes.load(Ordering::Relaxed),
            seconds: joined.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9,
        })
    }

    /// Ends this process and all others, which would otherwise wait for this one for ever.
    pub fn abort(&self, code: i32) -> ! {
        match &self.0 {
            Some(joined) => joined.link.abort(code),
            None => std::process::exit(code),
        }
    }

    fn collective(&self, bytes: usize, call: impl FnOnce(&Link)) {
        let Some(joined) = &self.0 else { return };
        let start = Instant::now();
        call(&joined.link);
        joined.count(bytes, start);
    }
}

impl Joined {
    /// Counts a call that sent `bytes` and was waited for since `start`.
    fn count(&self, bytes: usize, start: Instant) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// Share `rank` of `count` of `0..total`.
fn shard(total: usize, rank: usize, count: usize) -> Range<usize> {
    total * rank / count..total * (rank + 1) / count
}

/// Number of processes that a launcher started, including this one, if it started several. Known launchers are Open
/// MPI, the Hydra launcher of MPICH and Intel MPI, and Slurm.
fn started_together(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]
        .into_iter()
        .find_map(|name| variable(name)?.trim().parse().ok())
        .filter(|&count: &usize| count > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rank_changes_nothing() {
        let ranks = Ranks::alone();
        let mut values = [1.5f32, -2.0];
        ranks.sum(&mut values);
        assert_eq!(ranks.sum_during(&mut values, || 7), 7);
        assert_eq!((values, ranks.any([true, false])), ([1.5, -2.0], [true, false]));
        assert_eq!((ranks.gather(7), ranks.gather_text("a"), ranks.shard(9)), (vec![7], vec!["a".to_string()], 0..9));
        ranks.check_equal(3, "weights", "").unwrap();
        assert_eq!((ranks.broadcast_f64(0.5), ranks.broadcast(vec![1, 2])), (0.5, vec![1, 2]));
        ranks.barrier();
        assert_eq!((ranks.rank(), ranks.count(), ranks.traffic()), (0, 1, Traffic::default()));
    }

    #[test]
    fn parts_lie_side_by_side_and_are_equal_or_nearly_so() {
        for (total, count) in [(32, 3), (7, 7), (5, 8), (1024, 2)] {
            let parts: Vec<_> = (0..count).map(|rank| shard(total, rank, count)).collect();
            assert_eq!((parts[0].start, parts[count - 1].end), (0, total));
            assert!(parts.windows(2).all(|w| w[0].end == w[1].start));
            let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1, "{lengths:?}");
        }
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        let started = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_string());
            started_together(find)
        };
        assert_eq!(started(&[("OMPI_COMM_WORLD_SIZE", "2")]), Some(2));
        assert_eq!(started(&[("PMI_SIZE", "4"), ("PMI_RANK", "3")]), Some(4));
        assert_eq!(started(&[("SLURM_STEP_NUM_TASKS", "8")]), Some(8));
        // mpirun inside a Slurm job's one-task step; a single process; the shell of a batch job.
        assert_eq!(started(&[("OMPI_COMM_WORLD_SIZE", "3"), ("SLURM_STEP_NUM_TASKS", "1")]), Some(3));
        assert_eq!(started(&[("OMPI_COMM_WORLD_SIZE", "1")]), None);
        assert_eq!(started(&[("SLURM_NTASKS", "8")]), None);
    }
}
