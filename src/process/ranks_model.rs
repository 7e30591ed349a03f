//! Model of distributed training: speed for a number of processes, from the computation and communication of a step.

use serde::Serialize;

/// Network between the processes.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Bytes per second of each process, in and out at the same time.
    pub bandwidth: f64,
    /// Seconds until the first byte of a message arrives.
    pub latency: f64,
}

/// Computation and communication of one process in a step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Seconds of computation.
    pub compute: f64,
    /// Images of the process.
    pub images: usize,
    /// Bytes of gradients that are exchanged during the computation.
    pub hidden_bytes: f64,
    /// Seconds of computation during that exchange.
    pub hiding: f64,
    /// Bytes of gradients that are exchanged after the computation.
    pub exposed_bytes: f64,
    /// Number of all-reduces of a few values each.
    pub small_sums: usize,
}

/// Predicted speed for a number of processes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Number of processes.
    pub ranks: usize,
    /// Seconds of communication per step.
    pub communication_seconds: f64,
    /// Seconds per step for which the computation waits for communication.
    pub exposed_seconds: f64,
    /// Images per second of all processes together.
    pub images_per_second: f64,
    /// Images per second per process, as a fraction of what a single process reaches.
    pub efficiency: f64,
    /// Images per second if all gradients were exchanged at once after the computation.
    pub images_per_second_in_turn: f64,
}

/// The prediction for `ranks` processes, all equally fast.
///
/// A ring all-reduce sends `2 (n - 1)` messages of the `n`-th part of the gradients, one after the other (Patarasuk &
/// Yuan 2009); a sum of a few numbers takes one message for each doubling of the processes. The computation waits for
/// the part of the hidden exchange that outlasts it, and for all other exchanges.
pub fn predict(step: Step, network: Network, ranks: usize) -> Prediction {
    let n = ranks as f64;
    let ring = |bytes: f64| match bytes > 0.0 {
        true => 2.0 * (n - 1.0) * (network.latency + bytes / n / network.bandwidth),
        false => 0.0,
    };
    let small = step.small_sums as f64 * n.log2().ceil() * network.latency;
    let (hidden, exposed) = (ring(step.hidden_bytes), ring(step.exposed_bytes) + small);
    let waiting = (hidden - step.hiding).max(0.0) + exposed;
    let in_turn = ring(step.hidden_bytes + step.exposed_bytes) + small;
    let images = (ranks * step.images) as f64;
    Prediction {
        ranks,
        communication_seconds: hidden + exposed,
        exposed_seconds: waiting,
        images_per_second: images / (step.compute + waiting),
        efficiency: step.compute / (step.compute + waiting),
        images_per_second_in_turn: images / (step.compute + in_turn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: Network = Network { bandwidth: 1e9, latency: 1e-5 };

    #[test]
    fn communication_grows_to_twice_the_gradients_time_and_latency_with_the_ranks() {
        let step = Step { compute: 0.1, images: 64, hidden_bytes: 0.0, hiding: 0.0, exposed_bytes: 2e7, small_sums: 5 };
        let alone = predict(step, NETWORK, 1);
        assert_eq!((alone.communication_seconds, alone.efficiency, alone.images_per_second), (0.0, 1.0, 640.0));
        let two = predict(step, NETWORK, 2);
        // Two messages of half the gradients, and five of a few numbers.
        assert!((two.communication_seconds - (0.02 + 7e-5)).abs() < 1e-12, "{two:?}");
        assert!((two.images_per_second - 128.0 / (0.12 + 7e-5)).abs() < 1e-9, "{two:?}");
        assert_eq!(two.images_per_second_in_turn, two.images_per_second);
        let many = predict(step, NETWORK, 1024);
        let expected = 2.0 * 1023.0 * (1e-5 + 2e7 / 1024.0 / 1e9) + 50.0 * 1e-5;
        assert!((many.communication_seconds - expected).abs() < 1e-12, "{many:?}");
        assert_eq!(many.exposed_seconds, many.communication_seconds);
    }

    #[test]
    fn the_computation_waits_for_what_outlasts_it_and_for_the_second_bucket() {
        let step =
            Step { compute: 0.1, images: 64, hidden_bytes: 1.6e7, hiding: 0.02, exposed_bytes: 4e6, small_sums: 0 };
        let waits = |hiding: f64| predict(Step { hiding, ..step }, NETWORK, 2).exposed_seconds;
        // Two buckets of 16 and 4 ms, each with two latencies of 10 us.
        assert!((waits(0.02) - 0.00402).abs() < 1e-12 && (waits(0.01) - (0.00602 + 0.00402)).abs() < 1e-12);
        let two = predict(step, NETWORK, 2);
        assert!((two.communication_seconds - 0.02004).abs() < 1e-12, "{two:?}");
        assert!((two.images_per_second - 128.0 / 0.10402).abs() < 1e-9, "{two:?}");
        assert!((two.images_per_second_in_turn - 128.0 / 0.12002).abs() < 1e-9, "{two:?}");
        assert_eq!(predict(step, NETWORK, 1).exposed_seconds, 0.0);
    }
}
