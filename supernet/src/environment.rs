//! Settings of the whole process that only a program may make: what candle reads from the environment, and what the C library does with freed memory.
//! Kernels work without them, more slowly.

/// Makes the settings, each unless the environment makes it already. To be called first thing in `main`.
///
/// - `CANDLE_NUM_THREADS=1`: for large elementwise operations candle keeps threads of its own that spin between two operations, and take the cores
///   from the kernels' threads.
/// - `RAYON_NUM_THREADS`, with the number that rayon would take anyway: without it candle reads `/proc/cpuinfo` at each matrix product.
/// - Freed memory stays with the process. Tensors of many megabytes come and go with every step; by default glibc gives such memory back to the system,
///   which clears and maps the same pages again.
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
    keep_freed_memory();
}

/// Whether no other thread can use the C library's environment: false where that is not known.
fn is_only_thread() -> bool {
    match std::env::consts::OS {
        "linux" | "android" => std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1),
        "windows" => true,
        _ => false,
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
    let is_set = |variable: &str, tunable: &str| std::env::var_os(variable).is_some() || tunables.contains(tunable);
    let set = |parameter, value| {
        // SAFETY: `mallopt` takes two numbers, no pointers, locks the allocator's state while it changes one threshold, and may be called at any time.
        unsafe { libc::mallopt(parameter, value) == 1 }
    };
    // Versions before 2.35 take no more than 32 MiB.
    if !is_set("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold") && !set(libc::M_MMAP_THRESHOLD, 1 << 30) {
        set(libc::M_MMAP_THRESHOLD, 32 << 20);
    }
    if !is_set("MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold") {
        set(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
    if !is_set("MALLOC_TOP_PAD_", "glibc.malloc.top_pad") {
        set(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Other allocators keep freed memory by themselves, or cannot be told.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

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
