//! Progressive shrinking (paper §3.3): the supernet is trained as its largest subnet first, then kernel size, depth and
//! width become elastic one after another, each stage fine-tuning what the earlier ones learned while the trained
//! largest network teaches.
//!
//! | file | concern |
//! | --- | --- |
//! | [`config`] | the training configuration: stages as data, presets, checks |
//! | [`stage`] | one stage of it |
//! | `checks` | what checks of its values have in common |
//! | `stage_images`, `taught` | a stage's resolutions; who teaches subnets, and how these learn |
//! | [`schedule`] | learning rate of a step |
//! | [`loss`] | smoothed cross-entropy, distillation, the loss of a subnet |
//! | [`class_balance`] | classes with different numbers of images |
//! | `alone` | one subnet with the schedule of all |
//! | [`finetune`] | fine-tuning of one subnet |
//! | [`gradients`] | summing gradients over subnets, their norm, clipping |
//! | [`optimizer`] | SGD with Nesterov momentum, Muon, AdamW |
//! | [`average`] | moving average of the weights |
//! | [`sampling`] | what a step draws |
//! | [`step`] | one progressive-shrinking step |
//! | `step_input` | what a step starts from |
//! | `passes` | the passes of its subnets |
//! | `preset` | training presets |
//! | `whitening` | first convolutions that whiten image patches |
//! | [`validation`] | batch-norm recalibration and accuracy of a subnet |
//! | [`tensor_file`] | named tensors and a JSON note in one checked file |
//! | [`checkpoint`] | what a checkpoint holds, which are kept, which one to resume from |
//! | [`metrics`] | the lines of `metrics.jsonl`, `metrics.csv` and TensorBoard's event files |
//! | [`progress`] | what an observer is told, speed and remaining time |
//! | [`run`] | the loop |

mod alone;
pub mod average;
pub mod checkpoint;
mod checks;
pub mod class_balance;
pub mod config;
pub mod finetune;
pub mod gradients;
pub mod loss;
pub mod metrics;
pub mod optimizer;
mod passes;
mod preset;
pub mod progress;
pub mod run;
pub mod sampling;
pub mod schedule;
pub mod stage;
mod stage_images;
pub mod step;
mod step_input;
mod taught;
pub mod tensor_file;
pub mod validation;
mod whitening;

pub use class_balance::ClassBalance;
pub use config::{ProbeConfig, StagePlan, TrainConfig};
pub use metrics::MetricsLine;
pub use optimizer::{AdamW, Muon, OptimizerKind, Undecayed};
pub use progress::{Control, Event, Outcome, ProbeResult, StepEvent};
pub use run::{Origin, is_unbegun, train, train_from};
pub use schedule::{Decay, Schedule};
pub use stage::{Sampling, StageConfig};
pub use stage_images::StageImages;
pub use step::StepReport;
pub use taught::{Divergence, Taught, Teacher};
pub use validation::EvaluationSet;
