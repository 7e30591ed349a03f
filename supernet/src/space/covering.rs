//! Few subnets that show everything that a block can be.

use super::dimension::{At, Place, assemble};
use super::{SearchSpace, Subnet};

impl SearchSpace {
    /// Subnets of full depth for the smallest images that together hold every distinct layer: each has one value of a
    /// dimension in all its blocks, and at the boundaries two that take turns, in all combinations. A block depends on
    /// its own choices, its stage, the boundaries around it, whether it is the stage's first, and the images; all of
    /// these combinations occur. A checked space has at most 4096 of them.
    pub fn covering(&self) -> impl ExactSizeIterator<Item = Subnet> + use<> {
        let places = self.places();
        let counters = counters(&places);
        let subnet = move |setting: usize| {
            assemble(&places, |_, place| {
                let last = place.values.len().saturating_sub(1);
                match (counter(place), place.at) {
                    (None, At::Input) => 0,
                    (None, _) => last,
                    (Some(number), _) => {
                        let position = counters.iter().position(|(other, _)| *other == number).expect("counted above");
                        let later = counters[position + 1..].iter().map(|(_, most)| most).product::<usize>();
                        (setting / later % counters[position].1).min(last)
                    }
                }
            })
        };
        (0..self.covering_count()).map(subnet)
    }

    /// Number of the [`covering`](Self::covering) subnets.
    pub(super) fn covering_count(&self) -> usize {
        counters(&self.places()).iter().map(|(_, most)| *most).fold(1, usize::saturating_mul)
    }
}

/// Most covering subnets of a space: a supernet, a profile and their checks have a network for each.
pub(super) const MOST_COVERING: usize = 4096;

/// Number of a counter: places with one counter have their values in common.
fn counter(place: &Place) -> Option<(usize, usize)> {
    match place.at {
        At::Boundary(boundary) => Some((place.dimension.index(), boundary % 2)),
        At::Input => None,
        _ => (!place.dimension.is_depth).then_some((place.dimension.index(), 0)),
    }
}

/// The counters with the values that each counts; where a place has fewer, it stays at its last.
fn counters(places: &[Place]) -> Vec<((usize, usize), usize)> {
    let mut counters: Vec<((usize, usize), usize)> = Vec::new();
    for place in places {
        let Some(number) = counter(place) else { continue };
        match counters.iter_mut().find(|(other, _)| *other == number) {
            Some((_, most)) => *most = place.values.len().max(*most),
            None => counters.push((number, place.values.len())),
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::super::preset;

    /// Profiles list layers in the order in which these networks have them.
    #[test]
    fn subnets_in_their_order() {
        let networks = |name| {
            let choices = preset(name).unwrap().covering();
            choices.map(|subnet| subnet.to_string()).collect::<Vec<_>>()
        };
        let tiny = networks("tiny");
        assert_eq!(tiny.len(), 2 * 3);
        assert_eq!(tiny[1], "r16 d2,2 k3,3|3,3 e3,3|3,3");
        assert_eq!(tiny[3], "r16 d2,2 k5,5|5,5 e2,2|2,2");
        let proxyless = networks("proxyless-w1.3");
        assert_eq!(
            proxyless[8],
            "r128 d4,4,4,4,4,1 k7,7,7,7|7,7,7,7|7,7,7,7|7,7,7,7|7,7,7,7|7 e6,6,6,6|6,6,6,6|6,6,6,6|6,6,6,6|6,6,6,6|6"
        );
        let resnet = networks("resnet-tiny");
        assert_eq!(
            resnet,
            [
                "r24 w0.5,0.5,0.5,0.5 s1 d2,2 e0.25,0.25|0.25,0.25",
                "r24 w0.5,0.5,0.5,0.5 s1 d2,2 e0.5,0.5|0.5,0.5",
                "r24 w0.5,1,0.5,1 s1 d2,2 e0.25,0.25|0.25,0.25",
                "r24 w0.5,1,0.5,1 s1 d2,2 e0.5,0.5|0.5,0.5",
                "r24 w1,0.5,1,0.5 s1 d2,2 e0.25,0.25|0.25,0.25",
                "r24 w1,0.5,1,0.5 s1 d2,2 e0.5,0.5|0.5,0.5",
                "r24 w1,1,1,1 s1 d2,2 e0.25,0.25|0.25,0.25",
                "r24 w1,1,1,1 s1 d2,2 e0.5,0.5|0.5,0.5",
            ]
        );
    }
}
