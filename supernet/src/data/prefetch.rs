//! Work done ahead of its consumer.

use crate::{Error, Result};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

/// An iterator over `make(0)`, `make(1)`, ..., produced in order on a background thread.
///
/// The iterator ends after `count` items or after the first error. A panic in `make` is passed on to the consumer.
pub struct Prefetch<T> {
    // `None` once the iteration has ended.
    results: Option<Receiver<Result<T>>>,
    thread: Option<JoinHandle<()>>,
    remaining: usize,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts the thread; at most `ahead` results (at least one) wait for the consumer at any time.
    pub fn new(count: usize, ahead: usize, mut make: impl FnMut(usize) -> Result<T> + Send + 'static) -> Self {
        // A blocked sender holds one result more than the channel does.
        let (sender, results) = sync_channel(ahead.saturating_sub(1));
        let body = move || {
            for index in 0..count {
                let result = make(index);
                let failed = result.is_err();
                // Sending fails when the consumer is gone.
                if sender.send(result).is_err() || failed {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("prefetch".into()).spawn(body).ok();
        Prefetch { results: Some(results), thread, remaining: count }
    }

    fn end(&mut self) {
        self.results = None;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            resume_unwind(panic);
        }
    }
}

impl<T: Send + 'static> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let received = self.results.as_ref()?.recv();
        match received {
            Ok(Ok(item)) => {
                self.remaining -= 1;
                Some(Ok(item))
            }
            Ok(Err(error)) => {
                self.end();
                Some(Err(error))
            }
            Err(_) => {
                self.end();
                // Reached only if the thread could not be started: a running thread ends early only by errors and
                // panics.
                (self.remaining > 0).then(|| Err(Error::Data("the loading thread could not be started".into())))
            }
        }
    }
}

impl<T> Drop for Prefetch<T> {
    /// Stops the thread after its current item.
    fn drop(&mut self) {
        self.results = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn items_come_in_order_and_end() {
        let mut items = Prefetch::new(20, 3, |i| Ok(i * i));
        let got: Vec<usize> = items.by_ref().map(Result::unwrap).collect();
        assert_eq!(got, (0..20).map(|i| i * i).collect::<Vec<_>>());
        assert!(items.next().is_none());
        assert!(Prefetch::new(0, 2, Ok).next().is_none());
    }

    #[test]
    fn never_runs_more_than_asked_ahead_and_stops_when_dropped() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let mut items = Prefetch::new(1_000_000, 4, move |i| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(i)
        });
        for taken in 0..5 {
            assert!(made.load(Ordering::SeqCst) <= taken + 4 + 1);
            thread::sleep(Duration::from_millis(5));
            assert_eq!(items.next().unwrap().unwrap(), taken);
        }
        drop(items);
        let after = made.load(Ordering::SeqCst);
        assert!(after <= 10, "{after} made for 5 taken");
        thread::sleep(Duration::from_millis(10));
        assert_eq!(made.load(Ordering::SeqCst), after);
    }

    #[test]
    fn an_error_is_the_last_item() {
        let mut items = Prefetch::new(9, 2, |i| if i == 2 { Err(Error::Data("broken".into())) } else { Ok(i) });
        assert_eq!(items.next().unwrap().unwrap(), 0);
        assert_eq!(items.next().unwrap().unwrap(), 1);
        assert!(items.next().unwrap().unwrap_err().to_string().contains("broken"));
        assert!(items.next().is_none());
    }

    #[test]
    #[should_panic(expected = "lost its way")]
    fn a_panic_reaches_the_consumer() {
        Prefetch::new(3, 2, |i| if i == 1 { panic!("lost its way") } else { Ok(i) }).for_each(drop);
    }
}
