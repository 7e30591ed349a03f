//! What a training will do, said before it starts, and what it has reached.

use crate::output::table;
use crate::output::terminal::{note, warning};
use crate::run_folder::RunConfig;
use anyhow::Result;
use ofa_evaluate::cost;
use ofa_supernet::Subnet;
use ofa_supernet::data::Dataset;
use ofa_supernet::train::ProbeResult;
use serde_json::{Value, json};

/// Images whose sizes are looked at.
const SAMPLE: usize = 25;
/// Images this many times as large as the resolution lose much of what they show.
const MUCH_LARGER: usize = 3;

/// Resolution from which networks are for photographs.
const PHOTOGRAPHS: usize = 128;

/// Says what is trained, and warns of images much larger than what the network sees of them.
pub fn print(config: &RunConfig, data: &Dataset) -> Result<()> {
    let (space, train) = (&config.space, &config.train);
    let of = |subnet: &Subnet| -> Result<String> {
        let network = space.network(subnet, data.classes.len())?;
        let millions = |count: u64| count as f64 / 1e6;
        Ok(format!(
            "{:.2} M MACs and {:.3} M parameters at {} px",
            millions(cost::macs(&network)),
            millions(cost::parameters(&network)),
            subnet.resolution
        ))
    };
    match train.only_subnet() {
        Some(subnet) => note(format!("one subnet alone, {subnet}: {}", of(subnet)?)),
        None => note(format!(
            "space '{}': smallest subnet {}, largest {}",
            space.name,
            of(&space.smallest())?,
            of(&space.largest())?
        )),
    }
    let stages: Vec<String> =
        train.stages.iter().map(|stage| format!("{} {}", stage.name, rounded(stage.epochs))).collect();
    let epochs = rounded(train.total_epochs());
    note(format!("{epochs} epoch{}: {}", if epochs == 1.0 { "" } else { "s" }, stages.join(", ")));
    let largest = space.resolutions[space.resolutions.len() - 1];
    // Photographs are reduced on purpose.
    if largest < PHOTOGRAPHS
        && let Some(side) = usual_side(data).filter(|side| *side >= MUCH_LARGER * largest)
    {
        warning(format!(
            "images are about {side} pixels high or wide, and the network sees them at {largest}; details are lost: take a \
             space with higher resolutions (--space mbv3-w1.0 --preset imagenet), or crop the images"
        ));
    }
    Ok(())
}

fn rounded(epochs: f64) -> f64 {
    (epochs * 100.0).round() / 100.0
}

/// Median of the shorter sides of some training images; `None` if one of them cannot be read, which training will say.
fn usual_side(data: &Dataset) -> Option<usize> {
    let count = data.train.len().min(SAMPLE);
    let side =
        |n: usize| data.train.image(n * data.train.len() / count).ok().map(|image| image.width.min(image.height));
    let mut sides = (0..count).map(side).collect::<Option<Vec<usize>>>()?;
    sides.sort_unstable();
    sides.get(count / 2).copied()
}

/// The validation accuracies of smallest, middle and largest subnet.
pub fn print_probes(probes: &[ProbeResult]) {
    let rows: Vec<Vec<String>> = probes
        .iter()
        .map(|p| vec![p.name.to_string(), format!("{:.1} %", 100.0 * p.accuracy), p.subnet.to_string()])
        .collect();
    table::print(&["subnet", "validation", "choices"], &rows);
}

/// The probes as JSON.
pub fn probes_json(probes: &[ProbeResult]) -> Vec<Value> {
    let probe = |p: &ProbeResult| json!({ "name": p.name, "subnet": p.subnet, "accuracy": p.accuracy });
    probes.iter().map(probe).collect()
}
