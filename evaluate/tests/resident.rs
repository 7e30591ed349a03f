//! Memory that the first run of a network takes.
//!
//! Counted by the allocator. What the system calls resident also holds pages of the program, which depend on what else
//! it has cached, and misses buffers that take the place of freed memory.

use ofa_evaluate::StaticNetwork;
use ofa_evaluate::runtime::with_threads;
use ofa_supernet::SearchSpace;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

#[test]
fn a_run_takes_the_planned_buffers_and_little_more() {
    let [mobile, residual] = ["mbv3-w1.0", "resnet50d"].map(|name| SearchSpace::named(name).unwrap());
    let of_mobile = [mobile.smallest(), mobile.middle(), mobile.largest()].map(|subnet| (&mobile, subnet));
    let of_residual = [residual.smallest(), residual.middle()].map(|subnet| (&residual, subnet));
    let networks: Vec<_> = of_mobile.into_iter().chain(of_residual).collect();
    for (threads, (space, subnet)) in [1, 2].into_iter().flat_map(|threads| networks.iter().map(move |n| (threads, n)))
    {
        let spec = space.network(subnet, 1000).unwrap();
        let mut network = StaticNetwork::random(&spec, 0).unwrap();
        let images = vec![0.5; spec.resolution * spec.resolution * 3];
        let planned = network.buffer_bytes() as usize;
        let mut taken = || {
            let before = HEAP.current_usage();
            HEAP.reset_peak_usage();
            with_threads(threads, || network.run(&images, 1).map(<[f32]>::len)).unwrap();
            HEAP.peak_usage() - before
        };
        let (first, second) = (taken(), taken());
        println!("{threads} threads, {subnet}: {first} bytes taken first, {second} then; {planned} planned");
        // Windows of a map, which each thread takes for itself: how many exist at once, and which of them could be
        // used again, depends on how the threads meet.
        let windows = threads << 20;
        assert!((planned..=planned + windows).contains(&first), "{subnet}: {first} bytes, {planned} of them planned");
        assert!(second <= windows, "{subnet}: {second} bytes are taken by each run");
    }
}
