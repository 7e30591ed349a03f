//! A small search problem whose answer exhaustive search finds.

use crate::Measures;
use ofa_supernet::{SearchSpace, Subnet};
use std::collections::HashSet;

/// Separable score whose blocks have unequal weights, so that choosing within a limit is hard.
pub fn worth(subnet: &Subnet) -> f64 {
    let mut sum = (subnet.resolution as f64).sqrt();
    for (stage, blocks) in subnet.stages.iter().enumerate() {
        for (index, b) in blocks.iter().enumerate() {
            let weight = [1.0, 0.61, 0.83, 0.37][2 * stage + index];
            sum += weight * (b.expand.value().sqrt() + 0.23 * b.kernel as f64);
        }
    }
    sum
}

/// Every subnet of `space`, by walking along neighbours.
pub fn everything(space: &SearchSpace) -> Vec<Subnet> {
    let mut seen = HashSet::from([space.smallest()]);
    let mut all = vec![space.smallest()];
    let mut next = 0;
    while next < all.len() {
        for neighbour in space.neighbours(&all[next]) {
            if seen.insert(neighbour.clone()) {
                all.push(neighbour);
            }
        }
        next += 1;
    }
    all
}

/// MACs of `subnet` with 10 classes.
pub fn macs(space: &SearchSpace, subnet: &Subnet) -> f64 {
    let limit = "any:macs=1".parse().expect("a limit");
    Measures::new(space, 10, Vec::new()).value(&limit, subnet).expect("a subnet of the space")
}
