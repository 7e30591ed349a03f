//! Environment variables that candle reads, which only a program may set. Kernels work without them, but more slowly.

/// Sets the variables, each unless it is set already. Call this first in `main`.
///
/// - `CANDLE_NUM_THREADS=1`: for large elementwise operations candle keeps threads that spin between two operations and
///   take the cores from the kernels' threads.
/// - `RAYON_NUM_THREADS`, to the number that rayon would use anyway: unless it is set, candle reads `/proc/cpuinfo` at
///   each matrix product.
///
/// If the process already has a second thread, nothing is set.
pub fn prepare_process() {
    if is_only_thread() {
        let cores = std::thread::available_parallelism().map(|cores| ("RAYON_NUM_THREADS", cores.to_string()));
        let variables = [("CANDLE_NUM_THREADS", "1".to_owned())].into_iter().chain(cores);
        for (name, value) in variables.filter(|(name, _)| std::env::var_os(name).is_none()) {
            // SAFETY: changing the environment is sound while no other thread reads it. `is_only_thread` found no other
            // thread (on Windows there may be one, but the system guards the environment there), and none starts
            // between that check and this line, since only this thread could start one.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Whether no other thread can use the C library's environment; false if that is not known.
fn is_only_thread() -> bool {
    match std::env::consts::OS {
        "linux" | "android" => std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1),
        "windows" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_environment_is_left_alone_beside_other_threads() {
        // The test harness runs this on a separate thread.
        let before: Vec<_> = std::env::vars_os().collect();
        super::prepare_process();
        assert_eq!(std::env::vars_os().collect::<Vec<_>>(), before);
    }
}
