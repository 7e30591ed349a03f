//! What `ofa train` shows while it trains.

use crate::output::progress::{self, Bar, counted};
use crate::output::terminal::{self, note, warning};
use crate::run_folder::RunConfig;
use ofa_extract::tune::significant;
use ofa_supernet::SearchSpace;
use ofa_supernet::train::Event;
use ofa_supernet::train::progress::StepEvent;

/// Shows how the training proceeds.
pub struct TrainingProgress<'a> {
    bar: Bar,
    config: &'a RunConfig,
    /// Whether the stage trains only the largest subnet. Accuracies of others say nothing then.
    only_largest: bool,
    /// The last validation.
    accuracies: String,
}

impl<'a> TrainingProgress<'a> {
    /// A bar for the training of `config`.
    pub fn new(config: &'a RunConfig) -> Self {
        TrainingProgress {
            bar: Bar::new("training", 0, "steps"),
            config,
            only_largest: false,
            accuracies: String::new(),
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Resumed { checkpoint, step, damaged, rates } => {
                damaged
                    .iter()
                    .for_each(|reason| warning(format!("skipped a checkpoint that cannot be read: {reason}")));
                note(format!("resumed from {} at step {step}", checkpoint.display()));
                if let Some((before, now)) = rates {
                    let [before, now] = [*before, *now].map(significant);
                    note(format!("other settings than before: the learning rate goes on at {now}, not at {before}"));
                }
            }
            Event::Stage { name, index, stages, steps } => {
                self.only_largest = trains_only_largest(self.config, *index);
                note(format!("stage {} of {stages} '{name}': {}", index + 1, counted(*steps, "step")));
            }
            Event::Step(step) => {
                self.bar.pace(format!("{} images/s", progress::rate(step.images_per_second)), step.eta_seconds);
                self.bar.advance(step.step, step.steps, details(step, &self.accuracies));
            }
            Event::Probes { stage, step, results } => {
                let shown = results.iter().filter(|result| !self.only_largest || result.name == "largest");
                let shown: Vec<String> =
                    shown.map(|result| format!("{} {:.1} %", result.name, 100.0 * result.accuracy)).collect();
                self.accuracies = format!("validation {}", shown.join(", "));
                note(format!("step {step} ({stage}): {}", self.accuracies));
            }
            Event::Skipped { reason, skipped, allowed } => {
                warning(format!("skipped a step ({skipped} of at most {allowed}): {reason}"));
            }
            Event::Checkpoint { path } => terminal::detail(|| format!("{} written", path.display())),
        }
    }
}

/// Whether stage `index` trains only the largest subnet, perhaps at several resolutions.
fn trains_only_largest(config: &RunConfig, index: usize) -> bool {
    let Some(stage) = config.train.stages.get(index) else { return false };
    let choices = stage.choices(&config.space);
    let one_resolution = SearchSpace { resolutions: choices.resolutions[..1].to_vec(), ..choices };
    stage.subnet.is_none() && one_resolution.count() == 1.0
}

/// What is shown of a step, the most important part first.
fn details(step: &StepEvent, accuracies: &str) -> [String; 6] {
    [
        format!("loss {:.3}", step.report.loss),
        format!("accuracy {:.1} %", 100.0 * step.report.accuracy),
        accuracies.to_string(),
        format!("{} epoch {:.1} of {:.1}", step.stage, step.epoch, step.epochs),
        format!("learning rate {:.4}", step.learning_rate),
        step.report.distillation.map(|distillation| format!("distillation {distillation:.3}")).unwrap_or_default(),
    ]
}
