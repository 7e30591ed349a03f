//! Progress and interruption of opening a dataset, and the choice of splits.

use super::DataOptions;
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Progress of opening a dataset: `done` of `total` shares of one kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenProgress {
    /// Name of the work, for display: "reading images".
    pub work: &'static str,
    /// Number of files, images or groups of images done.
    pub done: usize,
    /// Number of files, images or groups of images in all; 0 if it is not known yet.
    pub total: usize,
}

/// Callback before each share of work, from several threads; a break ends the opening with [`Error::Interrupted`].
pub type OpenObserver<'a> = &'a (dyn Fn(OpenProgress) -> ControlFlow<()> + Sync);

/// The splits of a dataset that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Splits {
    /// Training, validation and test images.
    All,
    /// Test images only; training and validation splits are empty, and their files need not exist.
    Test,
}

/// Context of opening a dataset, for the readers of layouts.
pub(super) struct Opening<'a> {
    pub options: &'a DataOptions,
    pub splits: Splits,
    pub observer: OpenObserver<'a>,
}

impl Opening<'_> {
    /// Reports work of unknown extent.
    pub fn check(&self, work: &'static str) -> Result<()> {
        self.report(OpenProgress { work, done: 0, total: 0 })
    }

    fn report(&self, progress: OpenProgress) -> Result<()> {
        if (self.observer)(progress).is_break() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Results of `work_on` for each of `items`, in order, computed in parallel.
    pub fn map<T: Sync, U: Send>(
        &self,
        work: &'static str,
        items: &[T],
        work_on: impl Fn(&T) -> U + Sync,
    ) -> Result<Vec<U>> {
        let done = AtomicUsize::new(0);
        let one = |item: &T| {
            self.report(OpenProgress { work, done: done.fetch_add(1, Ordering::Relaxed), total: items.len() })?;
            Ok(work_on(item))
        };
        items.par_iter().map(one).collect()
    }
}
