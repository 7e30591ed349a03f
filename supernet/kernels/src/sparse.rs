//! Fully connected layers with ReLU for inputs that are mostly zero, such as one-hot features and outputs of ReLU: rows
//! of the weight whose inputs are all zero are not read.

use super::simd::{Kernel, Simd, dispatch, entry_points};
use super::slice::{Lane, SLICE};

/// Rows per group: each weight that is loaded serves all of them, and inputs that are zero in all of them are skipped.
const ROWS: usize = 4;
/// Outputs per panel. Their weights for a few hundred inputs fit into L1 and stay there for all rows.
const PANEL: usize = SLICE;

/// The weights from one input to the outputs of a panel, one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; PANEL]);

/// The values of [`ROWS`] rows in one column.
#[derive(Debug, Clone, Copy)]
struct Entry {
    column: u32,
    values: [f32; ROWS],
}

/// Mostly-zero rows in groups of `ROWS`, each stored as its columns with a nonzero value, ascending.
#[derive(Debug, Clone)]
pub struct SparseRows {
    rows: usize,
    width: usize,
    /// `[group, width]`; each group uses only its first `taken` entries.
    entries: Vec<Entry>,
    /// Number of entries used, per group.
    taken: Vec<usize>,
}

impl SparseRows {
    /// Rows per group: work divides evenly in multiples of it.
    pub const GROUP: usize = ROWS;

    /// Rows of `width` columns that are 1 at the given columns and 0 elsewhere.
    ///
    /// # Panics
    /// A column is not below `width`.
    pub fn ones<'a>(width: usize, rows: impl ExactSizeIterator<Item = &'a [usize]>) -> Self {
        let mut sparse = SparseRows::zeros(width, rows.len());
        let mut dense = vec![[0.0; ROWS]; width];
        let last = rows.len().saturating_sub(1);
        for (row, columns) in rows.enumerate() {
            columns.iter().for_each(|&column| dense[column][row % ROWS] = 1.0);
            if row % ROWS == ROWS - 1 || row == last {
                sparse.extend(row / ROWS, 0, &dense);
                dense.fill([0.0; ROWS]);
            }
        }
        sparse
    }

    /// Rows of `width` columns from their values, `[rows, width]`.
    ///
    /// # Panics
    /// The values are no whole number of rows.
    pub fn of_values(width: usize, values: &[f32]) -> Self {
        assert!(values.len().is_multiple_of(width));
        let mut sparse = SparseRows::zeros(width, values.len() / width);
        for (group, rows) in values.chunks(width * ROWS).enumerate() {
            let mut dense = vec![[0.0; ROWS]; width];
            for (row, values) in rows.chunks_exact(width).enumerate() {
                dense.iter_mut().zip(values).for_each(|(column, value)| column[row] = *value);
            }
            sparse.extend(group, 0, &dense);
        }
        sparse
    }

    /// The values, `[rows, width]`.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.taken.len() * ROWS * self.width];
        for (group, rows) in values.chunks_exact_mut(ROWS * self.width).enumerate() {
            for entry in self.group(group) {
                for (row, value) in entry.values.into_iter().enumerate() {
                    rows[row * self.width + entry.column as usize] = value;
                }
            }
        }
        values.truncate(self.rows * self.width);
        values
    }

    fn zeros(width: usize, rows: usize) -> Self {
        let groups = rows.div_ceil(ROWS);
        let entries = vec![Entry { column: 0, values: [0.0; ROWS] }; groups * width];
        SparseRows { rows, width, entries, taken: vec![0; groups] }
    }

    fn group(&self, group: usize) -> &[Entry] {
        &self.entries[group * self.width..][..self.taken[group]]
    }

    /// Appends the columns from `first` on to a group, skipping those that are all zero.
    #[inline(always)]
    fn extend(&mut self, group: usize, first: usize, columns: &[[f32; ROWS]]) {
        let mut taken = self.taken[group];
        let entries = &mut self.entries[group * self.width..][..self.width];
        for (column, &values) in columns.iter().enumerate() {
            // Every entry is written, and kept only if nonzero: a branch would be mispredicted often.
            entries[taken] = Entry { column: (first + column) as u32, values };
            taken += usize::from(values.iter().any(|&value| value != 0.0));
        }
        self.taken[group] = taken;
    }

    /// The dot product of each row with `weight`, which has one number per column.
    pub fn dot(&self, weight: &[f32]) -> Vec<f32> {
        assert_eq!(weight.len(), self.width);
        let of_group = |group: usize| {
            let mut sums = [0.0; ROWS];
            for entry in self.group(group) {
                let weight = weight[entry.column as usize];
                sums.iter_mut().zip(entry.values).for_each(|(sum, value)| *sum += value * weight);
            }
            sums
        };
        let mut products: Vec<f32> = (0..self.taken.len()).flat_map(of_group).collect();
        products.truncate(self.rows);
        products
    }
}

/// The layer `y = max(x W + b, least)`, where `least` is 0 (ReLU) or minus infinity (no activation).
#[derive(Debug, Clone)]
pub struct SparseLayer {
    inputs: usize,
    outputs: usize,
    least: f32,
    /// `[panel, input]`
    weight: Vec<Line>,
    /// `[panel]`
    bias: Vec<Line>,
}

impl SparseLayer {
    /// Packs the weight `[in, out]` and bias `[out]`.
    pub fn new(weight: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        assert!(outputs > 0 && !weight.is_empty() && weight.len().is_multiple_of(outputs));
        let line = |row: &[f32], start: usize| {
            let mut line = Line([0.0; PANEL]);
            let part = &row[start..outputs.min(start + PANEL)];
            line.0[..part.len()].copy_from_slice(part);
            line
        };
        let panels = || (0..outputs).step_by(PANEL);
        SparseLayer {
            inputs: weight.len() / outputs,
            outputs,
            least: 0.0,
            weight: panels().flat_map(|start| weight.chunks_exact(outputs).map(move |row| line(row, start))).collect(),
            bias: panels().map(|start| line(bias, start)).collect(),
        }
    }

    /// The layer without its activation.
    pub fn without_activation(self) -> Self {
        SparseLayer { least: f32::NEG_INFINITY, ..self }
    }

    /// Number of inputs: the width of its input rows.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The outputs of all rows, computed on the calling thread. The order of a row's sums does not depend on the other
    /// rows.
    pub fn forward(&self, rows: &SparseRows) -> SparseRows {
        assert_eq!(rows.width, self.inputs, "columns of the rows and inputs of the layer");
        let outputs = SparseRows::zeros(self.outputs, rows.rows);
        dispatch(Forward { layer: self, rows, outputs })
    }
}

struct Forward<'a> {
    layer: &'a SparseLayer,
    rows: &'a SparseRows,
    outputs: SparseRows,
}

impl Kernel for Forward<'_> {
    type Output = SparseRows;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> SparseRows {
        let Forward { layer, rows, mut outputs } = self;
        let panels = layer.bias.len();
        let mut first = 0;
        while first < panels {
            // One panel has too few sums to hide the latency of 512-bit multiply-adds.
            first += match S::LANES {
                16 if first + 1 < panels => layer.panels::<S, 1, 2>(s, first, rows, &mut outputs),
                16 => layer.panels::<S, 1, 1>(s, first, rows, &mut outputs),
                8 => layer.panels::<S, 2, 1>(s, first, rows, &mut outputs),
                _ => layer.panels::<S, 4, 1>(s, first, rows, &mut outputs),
            };
        }
        outputs
    }
}

impl SparseLayer {
    /// Computes the outputs of `P` panels from number `first` on, each `NR` vectors wide, and returns `P`.
    #[inline(always)]
    fn panels<S: Simd, const NR: usize, const P: usize>(
        &self,
        s: S,
        first: usize,
        rows: &SparseRows,
        outputs: &mut SparseRows,
    ) -> usize {
        let panels: [&[Line]; P] = std::array::from_fn(|p| &self.weight[(first + p) * self.inputs..][..self.inputs]);
        for group in 0..rows.taken.len() {
            let sums = product::<S, NR, P>(s, rows.group(group), panels);
            for (p, sums) in sums.iter().enumerate() {
                let index = first + p;
                let column = index * PANEL;
                let mut columns = [[0.0; ROWS]; PANEL];
                for (row, sums) in sums.iter().enumerate() {
                    let mut totals = self.bias[index];
                    for (lane, &sum) in Lane::covering(s, PANEL).zip(sums) {
                        let total = s.add(lane.load(&totals.0), sum);
                        lane.store(&mut totals.0, total);
                    }
                    columns.iter_mut().zip(&totals.0).for_each(|(column, sum)| column[row] = sum.max(self.least));
                }
                outputs.extend(group, column, &columns[..PANEL.min(self.outputs - column)]);
            }
        }
        P
    }
}

/// Product of a group and `P` panels, each `NR` vectors wide.
#[inline(always)]
fn product<S: Simd, const NR: usize, const P: usize>(
    s: S,
    entries: &[Entry],
    panels: [&[Line]; P],
) -> [[[S::V; NR]; ROWS]; P] {
    let mut sums = [[[s.splat(0.0); NR]; ROWS]; P];
    for entry in entries {
        let values = entry.values.map(|value| s.splat(value));
        for (sums, panel) in sums.iter_mut().zip(panels) {
            let weight = &panel[entry.column as usize].0;
            for (n, lane) in Lane::covering(s, PANEL).enumerate().take(NR) {
                let weight = lane.load(weight);
                for (sums, value) in sums.iter_mut().zip(values) {
                    sums[n] = s.mul_add(value, weight, sums[n]);
                }
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, values};

    /// Columns that are 1 in a row.
    fn ones(inputs: usize, row: usize) -> Vec<usize> {
        (0..inputs).filter(|column| (column * 7 + row * 5).is_multiple_of(3)).collect()
    }

    fn sparse(inputs: usize, rows: &[Vec<usize>]) -> SparseRows {
        SparseRows::ones(inputs, rows.iter().map(Vec::as_slice))
    }

    #[test]
    fn two_layers_and_a_product_equal_the_definition_alone_and_among_others() {
        for &(inputs, hidden, outputs, count) in &[(1, 1, 1, 1), (7, 20, 33, 9), (125, 400, 40, 6), (40, 33, 16, 4)] {
            let (first, first_bias) = (values(inputs * hidden, 1), values(hidden, 2));
            let (second, second_bias) = (values(hidden * outputs, 3), values(outputs, 4));
            let last = values(outputs, 5);
            let layers = [SparseLayer::new(&first, &first_bias), SparseLayer::new(&second, &second_bias)];
            let run = |rows: &[Vec<usize>]| layers[1].forward(&layers[0].forward(&sparse(inputs, rows))).dot(&last);
            let rows: Vec<Vec<usize>> = (0..count).map(|row| ones(inputs, row)).collect();
            let found = run(&rows);
            let dense = |x: &[f64], weight: &[f32], bias: &[f32]| -> Vec<f64> {
                let sum = |j: usize| {
                    let products = x.iter().enumerate().map(|(i, x)| x * f64::from(weight[i * bias.len() + j]));
                    (f64::from(bias[j]) + products.sum::<f64>()).max(0.0)
                };
                (0..bias.len()).map(sum).collect()
            };
            let expected: Vec<f64> = rows
                .iter()
                .map(|row| {
                    let x: Vec<f64> = (0..inputs).map(|i| f64::from(u8::from(row.contains(&i)))).collect();
                    let x = dense(&dense(&x, &first, &first_bias), &second, &second_bias);
                    x.iter().zip(&last).map(|(x, w)| x * f64::from(*w)).sum()
                })
                .collect();
            assert_close(&found, &expected, 1e-4, "two layers and a product");
            for (row, &found) in rows.iter().zip(&found) {
                assert_eq!(run(std::slice::from_ref(row)), [found]);
            }
        }
    }
}
