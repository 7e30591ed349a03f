//! The MPI engine.

use crate::{Error, Result};
use mpi::Threading;
use mpi::collective::{CommunicatorCollectives, Root, SystemOperation};
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{Buffer, BufferMut, Equivalence};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Values summed per call. MPI needs a second buffer of that size; a smaller one would pay the network's latency more
/// often.
const BUCKET: usize = 1 << 24;

/// Interval between two polls of a sum in the background.
const LOOK: Duration = Duration::from_micros(100);

pub(super) struct Link {
    /// Dropping the universe ends MPI.
    _universe: Universe,
    rank: usize,
    count: usize,
    /// Serialises calls: they come from whichever thread trains, but one at a time.
    turn: Mutex<()>,
}

impl Link {
    pub(super) fn join() -> Result<Self> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Ranks("MPI runs in this process already".into()));
        };
        if threading < Threading::Serialized {
            return Err(Error::Ranks(format!(
                "this MPI offers {threading:?} threads, but calls must be allowed from any thread, one at a time (MPI_THREAD_SERIALIZED)"
            )));
        }
        let world = SimpleCommunicator::world();
        let (rank, count) = (world.rank() as usize, world.size() as usize);
        Ok(Link { _universe: universe, rank, count, turn: Mutex::new(()) })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn turn(&self) -> (SimpleCommunicator, MutexGuard<'_, ()>) {
        (SimpleCommunicator::world(), self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn sum_f32(&self, values: &mut [f32]) {
        self.sum(values, 0.0);
    }

    /// Sums in the background of this process's computation until that has `worked`, and in the foreground from then
    /// on.
    pub(super) fn sum_f32_patiently(&self, values: &mut [f32], worked: &AtomicBool) {
        let (world, _turn) = self.turn();
        let mut sums = vec![0.0; values.len().min(BUCKET)];
        for bucket in values.chunks_mut(BUCKET) {
            let sums = &mut sums[..bucket.len()];
            mpi::request::scope(|scope| {
                let sum = SystemOperation::sum();
                let mut request = world.immediate_all_reduce_into(scope, &*bucket, &mut *sums, sum);
                // MPI moves data only while it is called. Waiting would take a core from the computation, however late
                // other ranks are.
                while !worked.load(Ordering::Acquire) {
                    match request.test() {
                        Ok(_) => return,
                        Err(unfinished) => request = unfinished,
                    }
                    std::thread::park_timeout(LOOK);
                }
                request.wait_without_status();
            });
            bucket.copy_from_slice(sums);
        }
    }

    pub(super) fn sum_f64(&self, values: &mut [f64]) {
        self.sum(values, 0.0);
    }

    fn sum<T: Equivalence + Copy>(&self, values: &mut [T], zero: T)
    where
        [T]: Buffer + BufferMut,
    {
        let (world, _turn) = self.turn();
        let mut sums = vec![zero; values.len().min(BUCKET)];
        for bucket in values.chunks_mut(BUCKET) {
            let sums = &mut sums[..bucket.len()];
            world.all_reduce_into(&*bucket, sums, SystemOperation::sum());
            bucket.copy_from_slice(sums);
        }
    }

    pub(super) fn gather(&self, number: u64) -> Vec<u64> {
        let (world, _turn) = self.turn();
        let mut all = vec![0; self.count];
        world.all_gather_into(&[number][..], &mut all[..]);
        all
    }

    pub(super) fn gather_text(&self, text: &str) -> Vec<String> {
        let lengths = self.gather(text.len() as u64);
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1) as usize;
        let (world, _turn) = self.turn();
        let mut own = text.as_bytes().to_vec();
        own.resize(longest, 0);
        let mut all = vec![0u8; longest * self.count];
        world.all_gather_into(&own[..], &mut all[..]);
        let text = |(bytes, length): (&[u8], u64)| String::from_utf8_lossy(&bytes[..length as usize]).into_owned();
        all.chunks(longest).zip(lengths).map(text).collect()
    }

    pub(super) fn broadcast(&self, bytes: &mut Vec<u8>) {
        let (world, _turn) = self.turn();
        let first = world.process_at_rank(0);
        let mut length = bytes.len() as u64;
        first.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        for bucket in bytes.chunks_mut(BUCKET) {
            first.broadcast_into(bucket);
        }
    }

    pub(super) fn abort(&self, code: i32) -> ! {
        // Without taking the lock: the thread that holds it may wait for a rank that will never come.
        SimpleCommunicator::world().abort(code)
    }
}
