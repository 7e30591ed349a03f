//! Stand-in for the MPI engine in programs without the feature `mpi`: a link that cannot exist.

use crate::{Error, Result};
use std::sync::atomic::AtomicBool;

pub(super) enum Link {}

impl Link {
    pub(super) fn join() -> Result<Self> {
        Err(Error::Ranks(
            "this process was started as one of several, but the program has no MPI; build it with `--features mpi`, or start a single process".into(),
        ))
    }

    pub(super) fn rank(&self) -> usize {
        match *self {}
    }

    pub(super) fn count(&self) -> usize {
        match *self {}
    }

    pub(super) fn sum_f32(&self, _: &mut [f32]) {
        match *self {}
    }

    pub(super) fn sum_f32_patiently(&self, _: &mut [f32], _: &AtomicBool) {
        match *self {}
    }

    pub(super) fn sum_f64(&self, _: &mut [f64]) {
        match *self {}
    }

    pub(super) fn gather(&self, _: u64) -> Vec<u64> {
        match *self {}
    }

    pub(super) fn gather_text(&self, _: &str) -> Vec<String> {
        match *self {}
    }

    pub(super) fn broadcast(&self, _: &mut Vec<u8>) {
        match *self {}
    }

    pub(super) fn abort(&self, _: i32) -> ! {
        match *self {}
    }
}
