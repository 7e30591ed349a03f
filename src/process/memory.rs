//! Checks that work fits into memory, before it starts.

use anyhow::{Result, bail};
use ofa_evaluate::memory::{TrainingMemory, limit};
use ofa_supernet::SearchSpace;
use ofa_supernet::data::Dataset;
use ofa_supernet::train::TrainConfig;

pub use ofa_evaluate::memory::{available, peak};

/// Fails if training can never fit into this machine's memory, and warns if it does not fit into the memory that is
/// free now. Both messages name a batch that fits, unless the run is `resumed`: it keeps its batch. `teacher` is the
/// space of another run's teacher. `processes` equal processes share the memory. Returns the estimate for one process
/// in bytes, including the bytes that it (with its data set) takes already.
pub fn check(
    space: &SearchSpace,
    teacher: Option<&SearchSpace>,
    data: &Dataset,
    config: &TrainConfig,
    (processes, resumed): (usize, bool),
) -> Result<u64> {
    let images = [data.train.len(), data.validation.len()];
    check_training(space, teacher, data.classes.len(), images, config, (processes, resumed))
}

/// [`check`] for given numbers of classes, training images and validation images.
pub fn check_training(
    space: &SearchSpace,
    teacher: Option<&SearchSpace>,
    classes: usize,
    images: [usize; 2],
    config: &TrainConfig,
    (processes, resumed): (usize, bool),
) -> Result<u64> {
    let need = |batch| bytes_of_training(space, teacher, classes, images, config, batch);
    let change = |smaller: usize| (!resumed).then(|| smaller_batches(config, smaller));
    check_change("training", (largest_batch(config), &change), &need, processes)
}

/// [`check`] for a tuning, by the `config` of its trial with the largest batch, which is `varied` or not.
pub fn check_trials(space: &SearchSpace, data: &Dataset, config: &TrainConfig, varied: bool) -> Result<u64> {
    let images = [data.train.len(), data.validation.len()];
    let need = |batch| bytes_of_training(space, None, data.classes.len(), images, config, batch);
    let change = |smaller: usize| Some(smaller_trials(config, smaller, varied));
    check_change("training", (largest_batch(config), &change), &need, 1)
}

/// Bytes that training takes with no more than `batch` images per step.
fn bytes_of_training(
    space: &SearchSpace,
    teacher: Option<&SearchSpace>,
    classes: usize,
    [train, validation]: [usize; 2],
    config: &TrainConfig,
    batch: usize,
) -> Result<u64> {
    // No more subnets at a time than there are threads.
    let subnets_at_once = config.subnets_at_once.min(rayon::current_num_threads());
    let mut smaller = TrainConfig { batch, subnets_at_once, ..config.clone() };
    // A stage's own batch shrinks too.
    smaller.stages.iter_mut().for_each(|stage| stage.batch = stage.batch.map(|own| own.min(batch)));
    Ok(TrainingMemory::estimate(space, teacher, classes, &smaller, train, validation)?.total())
}

fn largest_batch(config: &TrainConfig) -> usize {
    config.stages.iter().filter_map(|stage| stage.batch).fold(config.batch, usize::max)
}

/// Settings that make all batches of a tuning's trials at most `smaller`, as text. A folder keeps its settings.
fn smaller_trials(config: &TrainConfig, smaller: usize, varied: bool) -> String {
    let batches = match varied {
        true => format!("--ranges with a [batch] up to {smaller}"),
        false => smaller_batches(config, smaller),
    };
    format!("{batches} (and another --out)")
}

/// Settings that make all batches of `config` at most `smaller`, as text.
fn smaller_batches(config: &TrainConfig, smaller: usize) -> String {
    let flag = (config.batch > smaller).then(|| format!("--batch {smaller}"));
    let larger = config.stages.iter().filter(|stage| stage.batch.is_some_and(|own| own > smaller));
    let of_stages = larger.map(|stage| format!("`batch = {smaller}` in the stage '{}'", stage.name));
    flag.into_iter().chain(of_stages).collect::<Vec<_>>().join(" and ")
}

/// Settings that make a batch as small as given, as text; `None` where none does, as in a run that was begun.
type Change<'a> = dyn Fn(usize) -> Option<String> + 'a;

/// Fails or warns like [`check`] for `work` on `batch` images at a time, which takes `need(batch)` bytes.
pub fn check_batch(work: &str, batch: usize, need: &dyn Fn(usize) -> Result<u64>, processes: usize) -> Result<u64> {
    check_change(work, (batch, &|smaller| Some(format!("--batch {smaller}"))), need, processes)
}

fn check_change(
    work: &str,
    (batch, change): (usize, &Change),
    need: &dyn Fn(usize) -> Result<u64>,
    processes: usize,
) -> Result<u64> {
    let (wanted, taken) = (need(batch)?, peak().unwrap_or(0));
    // Each process judges its share of the memory; the free memory no longer includes what the others have taken.
    let share = |bytes: u64| bytes / processes as u64;
    let (free, most) = (available().map(share), limit().map(|limit| share(limit).saturating_sub(taken)));
    match verdict(work, need, (batch, change), free, most)? {
        Verdict::Fits => {}
        Verdict::Tight(message) => crate::output::terminal::warning(message),
        Verdict::Never(message) => bail!(message),
    }
    Ok(wanted.saturating_add(taken))
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Fits,
    Tight(String),
    Never(String),
}

/// Compares the `need` of a batch with the memory that is free now (`available`) and the most that can be free
/// (`limit`).
fn verdict(
    work: &str,
    need: &dyn Fn(usize) -> Result<u64>,
    (batch, change): (usize, &Change),
    available: Option<u64>,
    limit: Option<u64>,
) -> Result<Verdict> {
    let (Some(available), Some(limit)) = (available, limit) else { return Ok(Verdict::Fits) };
    let wanted = need(batch)?;
    if wanted <= available {
        return Ok(Verdict::Fits);
    }
    let mut smaller = batch.min(1 << 16);
    while smaller > 1 && need(smaller)? > available {
        smaller /= 2;
    }
    let least = need(smaller)?;
    let advice = if least > available {
        format!("even one image takes about {}, so take a smaller space or lower resolutions", mib(least))
    } else {
        match change(smaller) {
            Some(change) => format!("{change} takes about {}", mib(least)),
            None => {
                "a run that was begun keeps its batch: resume it where there is more memory, or with MPI on several \
                     machines"
                    .into()
            }
        }
    };
    let takes = format!("{work} with {batch} images at a time takes about {}", mib(wanted));
    Ok(if wanted > limit {
        Verdict::Never(format!("{takes}, more than the {} of this machine; {advice}", mib(limit)))
    } else {
        Verdict::Tight(format!("{takes}, but only {} are free, so the process may be killed; {advice}", mib(available)))
    })
}

/// Bytes as text in whole MiB.
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::train::StageConfig;

    #[test]
    fn work_that_does_not_fit_names_a_batch_that_does() {
        let need = |batch: usize| Ok((100 + 10 * batch as u64) << 20);
        let say_of = |change: &Change, free: u64, all: u64| {
            let verdict = verdict("training", &need, (64, change), Some(free << 20), Some(all << 20)).unwrap();
            match verdict {
                Verdict::Fits => "fits".to_string(),
                Verdict::Tight(message) => format!("tight: {message}"),
                Verdict::Never(message) => format!("never: {message}"),
            }
        };
        let flag = |smaller: usize| Some(format!("--batch {smaller}"));
        let say = |free: u64, all: u64| say_of(&flag, free, all);
        assert!(say_of(&|_| None, 500, 1000).contains("keeps its batch"));
        let stages = [("a", Some(64)), ("b", Some(16)), ("c", None)].map(|(name, batch)| {
            let text = format!("name = '{name}'\nepochs = 1.0\nlearning_rate = 0.1\n");
            let stage: StageConfig = ofa_supernet::files::parse_toml_text(&text).unwrap();
            StageConfig { batch, ..stage }
        });
        let config = TrainConfig { batch: 40, stages: stages.to_vec(), ..TrainConfig::default() };
        assert_eq!(smaller_batches(&config, 32), "--batch 32 and `batch = 32` in the stage 'a'");
        assert_eq!(largest_batch(&config), 64);
        assert_eq!(smaller_trials(&config, 16, true), "--ranges with a [batch] up to 16 (and another --out)");
        assert!(smaller_trials(&config, 32, false).starts_with("--batch 32 and "));
        assert_eq!(say(740, 1000), "fits");
        let tight = say(500, 1000);
        assert!(
            tight.starts_with("tight: ") && tight.contains("740 MiB") && tight.contains("--batch 32 takes about 420")
        );
        let never = say(300, 700);
        assert!(never.starts_with("never: ") && never.contains("--batch 16 ") && never.contains("700 MiB"), "{never}");
        assert!(say(90, 95).contains("even one image takes about 110 MiB"));
        assert_eq!(verdict("training", &need, (64, &flag), None, None).unwrap(), Verdict::Fits);
    }
}
