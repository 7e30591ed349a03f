//! Hypervolume: how much of the space of goals a front dominates, which orders fronts by one number (Zitzler and
//! Thiele, IEEE Transactions on Evolutionary Computation 1999).

/// Volume between `points` and `reference`, where smaller goals are better; points that are not below the reference in
/// every goal count nothing. Exact for any number of goals: slices along the last goal, each a problem of one goal
/// less.
pub fn hypervolume(points: &[Vec<f64>], reference: &[f64]) -> f64 {
    let inside = |point: &&Vec<f64>| point.iter().zip(reference).all(|(value, most)| value < most);
    let mut inside: Vec<&Vec<f64>> = points.iter().filter(inside).collect();
    let Some((most, others)) = reference.split_last() else { return 0.0 };
    let last = |point: &Vec<f64>| point[others.len()];
    inside.sort_by(|a, b| last(a).total_cmp(&last(b)));
    if others.is_empty() {
        return inside.first().map_or(0.0, |point| most - last(point));
    }
    let mut below: Vec<Vec<f64>> = Vec::new();
    let mut sum = 0.0;
    for (index, point) in inside.iter().enumerate() {
        below.push(point[..others.len()].to_vec());
        let end = inside.get(index + 1).map_or(*most, |next| last(next));
        if end > last(point) {
            sum += (end - last(point)) * hypervolume(&below, others);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_worked_out_by_hand() {
        let volume = |points: &[&[f64]], reference: &[f64]| {
            hypervolume(&points.iter().map(|point| point.to_vec()).collect::<Vec<_>>(), reference)
        };
        assert_eq!(volume(&[], &[1.0, 1.0]), 0.0);
        assert_eq!(volume(&[&[1.0, 2.0]], &[4.0, 4.0]), 6.0);
        // The second point adds a strip, the third is dominated, the fourth is outside.
        assert_eq!(volume(&[&[1.0, 2.0], &[2.0, 1.0], &[3.0, 3.0], &[0.0, 5.0]], &[4.0, 4.0]), 8.0);
        assert_eq!(volume(&[&[0.0, 0.0, 1.0], &[1.0, 1.0, 0.0]], &[2.0, 2.0, 2.0]), 4.0 + 1.0);
    }
}
