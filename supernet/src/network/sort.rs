//! Sorting channels by importance before a width stage.

use crate::Result;
use crate::layers::{Touch, sort_shared};
use crate::network::Supernet;
use crate::space::{BlockSpec, NetworkSpec};

impl Supernet {
    /// Sorts the middle channels of every elastic block by importance before width stage `stage` (1, 2, ...): the
    /// channels that earlier width stages kept stay in front. The reduced channels of squeeze-excite are sorted anew,
    /// as in the published code. The largest subnet's function does not change.
    ///
    /// # Errors
    /// None in practice; as every tensor operation.
    pub fn sort_channels(&self, stage: usize) -> Result<()> {
        let (space, parts) = (self.space(), self.parts());
        let ratios = |s: usize| space.stage_expand_ratios(s).len();
        let most = (0..space.stages.len()).map(ratios).max().unwrap_or(0);
        // The networks of the expand ratios that earlier width stages have trained beside the largest.
        let trained = (1..stage.min(most)).map(|rank| space.network(&space.at_expand_rank(rank), self.classes()));
        let trained: Vec<NetworkSpec> = trained.collect::<Result<_>>()?;
        let first = usize::from(space.first_block.is_some());
        for (s, blocks) in parts.stages.iter().enumerate() {
            // A stage with fewer ratios than others has none of the further ranks.
            let own = trained.iter().take(ratios(s) - 1);
            for (b, block) in blocks.iter().enumerate() {
                let specs: Vec<&BlockSpec> = own.clone().map(|network| &network.stages[first + s][b]).collect();
                block.sort_channels(parts.parameters, &specs)?;
            }
        }
        Ok(())
    }

    /// Sorts the channels between blocks, which ResNets narrow by width multipliers, before outer stage `stage` (1, 2,
    /// ...), as [`sort_channels`](Self::sort_channels) does for those inside blocks. Families without elastic widths
    /// have none to sort.
    ///
    /// # Errors
    /// None in practice; as every tensor operation.
    pub fn sort_outer_channels(&self, stage: usize) -> Result<()> {
        let (space, parts) = (self.space(), self.parts());
        let ratios = || space.outer_ratios(stage);
        let [first, optional @ .., last] = parts.stem else { return Ok(()) };
        let mut middle = vec![Touch::Writes(first), Touch::Reads(last.weight)];
        middle.extend(optional.iter().flat_map(|dense| [Touch::Writes(dense), Touch::Reads(dense.weight)]));
        let widths: Vec<usize> = ratios().map(|ratio| space.stem_middle_width(ratio)).collect();
        sort_shared(parts.parameters, &middle, &widths)?;

        // The layers that write what the next stage reads.
        let mut touching = vec![Touch::Writes(last)];
        let mut base = space.stem.channels;
        for (blocks, stage) in parts.stages.iter().zip(&space.stages) {
            let mut inside = Vec::new();
            for (index, block) in blocks.iter().enumerate() {
                let Some(outer) = block.outer_channels() else { return Ok(()) };
                if index == 0 { &mut touching } else { &mut inside }.extend(outer.readers);
                inside.extend(outer.writers);
            }
            let widths: Vec<usize> = ratios().map(|ratio| space.elastic_width(base, ratio)).collect();
            sort_shared(parts.parameters, &touching, &widths)?;
            (touching, base) = (inside, stage.channels);
        }
        touching.push(Touch::Reads(parts.classifier.0));
        let widths: Vec<usize> = ratios().map(|ratio| space.elastic_width(base, ratio)).collect();
        Ok(sort_shared(parts.parameters, &touching, &widths)?)
    }
}
