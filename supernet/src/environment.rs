//! Environment variables that candle reads: only a program may set them. Kernels work without them, more slowly.

/// Makes the settings, each unless the environment makes it already. To be called first thing in `main`.
///
/// - `CANDLE_NUM_THREADS=1`: for large elementwise operations candle keeps threads of its own that spin between two operations, and take the cores
///   from the kernels' threads.
/// - `RAYON_NUM_THREADS`, with the number that rayon would take anyway: without it candle reads `/proc/cpuinfo` at each matrix product.
///
/// Where the process has a second thread already, the variables are left alone.
pub fn prepare_process() {
    if is_only_thread() {
        let cores = std::thread::available_parallelism().map(|cores| ("RAYON_NUM_THREADS", cores.to_string()));
        let variables = [("CANDLE_NUM_THREADS", "1".to_owned())].into_iter().chain(cores);
        for (name, value) in variables.filter(|(name, _)| std::env::var_os(name).is_none()) {
            // SAFETY: changing the environment is sound while no other thread reads it. There is no other thread (on Windows there may be: the system
            // guards the environment there), and none starts between that check and this line, since only this thread could start it.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Whether no other thread can use the C library's environment: false where that is not known.
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
        // The test harness runs this on a thread of its own.
        let before: Vec<_> = std::env::vars_os().collect();
        super::prepare_process();
        assert_eq!(std::env::vars_os().collect::<Vec<_>>(), before);
    }
}
