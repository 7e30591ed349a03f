//! How fast training will be with more processes: a model of what they exchange.

use serde::Serialize;

/// What connects the processes.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Bytes a second of each process, in and out at the same time.
    pub bandwidth: f64,
    /// Seconds until the first byte of a message is there.
    pub latency: f64,
}

/// What one process does in a step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Seconds of computation.
    pub compute: f64,
    /// Its images.
    pub images: usize,
    /// Bytes of its gradients.
    pub bytes: f64,
    /// Sums of a few numbers.
    pub small_sums: usize,
}

/// What is expected of a number of processes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Number of processes.
    pub ranks: usize,
    /// Seconds of communication a step.
    pub communication_seconds: f64,
    /// Images a second of all together when gradients are exchanged after the step's computation, as here.
    pub images_per_second: f64,
    /// The same for each process, as a part of what one alone does.
    pub efficiency: f64,
    /// Images a second if the exchange were hidden behind the computation as far as that is longer.
    pub images_per_second_overlapped: f64,
}

/// The prediction for `ranks` processes, all equally fast.
///
/// A ring all-reduce sends `2 (n - 1)` messages of the `n`-th part of the gradients, one after the other (Patarasuk & Yuan 2009); a sum of a few
/// numbers takes one message for each doubling of the processes.
pub fn predict(step: Step, network: Network, ranks: usize) -> Prediction {
    let n = ranks as f64;
    let ring = 2.0 * (n - 1.0) * (network.latency + step.bytes / n / network.bandwidth);
    let communication = ring + step.small_sums as f64 * n.log2().ceil() * network.latency;
    let images = (ranks * step.images) as f64;
    Prediction {
        ranks,
        communication_seconds: communication,
        images_per_second: images / (step.compute + communication),
        efficiency: step.compute / (step.compute + communication),
        images_per_second_overlapped: images / step.compute.max(communication),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communication_grows_to_twice_the_gradients_time_and_latency_with_the_ranks() {
        let network = Network { bandwidth: 1e9, latency: 1e-5 };
        let step = Step { compute: 0.1, images: 64, bytes: 2e7, small_sums: 5 };
        let alone = predict(step, network, 1);
        assert_eq!((alone.communication_seconds, alone.efficiency, alone.images_per_second), (0.0, 1.0, 640.0));
        let two = predict(step, network, 2);
        // Two messages of half the gradients, and five of a few numbers.
        assert!((two.communication_seconds - (0.02 + 7e-5)).abs() < 1e-12, "{two:?}");
        assert!(
            (two.images_per_second - 128.0 / (0.12 + 7e-5)).abs() < 1e-9 && two.images_per_second_overlapped == 1280.0
        );
        let many = predict(step, network, 1024);
        let expected = 2.0 * 1023.0 * (1e-5 + 2e7 / 1024.0 / 1e9) + 50.0 * 1e-5;
        assert!((many.communication_seconds - expected).abs() < 1e-12, "{many:?}");
    }
}
