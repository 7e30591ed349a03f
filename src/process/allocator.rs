//! The program's memory allocator: mimalloc, configured to keep freed pages.
//!
//! Every step allocates and frees tensors of many megabytes. glibc returns such memory to the system, which then clears
//! and maps the same pages again, and glibc's setting for huge pages takes effect only before a process starts.
//! mimalloc needs no setting from outside; `docs/performance.md` compares both.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h`, which the binding does not name: milliseconds until freed pages return to
/// the system, or -1 for never.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed pages for the next step, unless the environment sets `MIMALLOC_PURGE_DELAY`.
#[allow(unsafe_code)]
pub fn keep_freed_memory() {
    // SAFETY: the call takes two numbers, no pointers, and stores one of them in a static of mimalloc that may be
    // written at any time.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) }
}

#[cfg(test)]
mod tests {
    #[test]
    #[allow(unsafe_code)]
    fn the_option_is_the_delay_before_freed_memory_returns_to_the_system() {
        // SAFETY: the call takes a number and reads one.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) };
        // mimalloc's default: another option would have another value.
        assert_eq!(delay(), 1000);
        super::keep_freed_memory();
        assert_eq!(delay(), -1);
    }
}
