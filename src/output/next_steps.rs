//! Commands that other commands name as the next ones: only such that can succeed.

use crate::arguments::shell;
use crate::run_folder::RunConfig;
use ofa_extract::predictor::FEWEST_SAMPLES;
use ofa_supernet::data::is_pattern;

/// Whether too few subnets are trained for a predictor.
pub fn are_few(config: &RunConfig) -> bool {
    config.train.only_subnet().is_some() || config.space.count() < FEWEST_SAMPLES as f64
}

/// The commands for a supernet that was just made in `run`.
pub fn with_supernet(config: &RunConfig, run: &str) -> Vec<String> {
    profile(config, run).into_iter().chain([after_training(config, run)]).collect()
}

/// The command that measures this machine; `None` for a single subnet, of which there is nothing to predict.
pub fn profile(config: &RunConfig, run: &str) -> Option<String> {
    (config.space.count() > 1.0).then(|| format!("ofa profile --run {run} --name this"))
}

/// The command that makes use of what is trained in `run`.
pub fn after_training(config: &RunConfig, run: &str) -> String {
    if !are_few(config) {
        return predictor(config, run);
    }
    let subnet = config.train.only_subnet().map_or("largest".into(), ToString::to_string);
    format!("ofa extract --run {run} --subnet {}{}", shell::quote(&subnet), images(config))
}

/// The command that measures subnets and fits the predictor.
pub fn predictor(config: &RunConfig, run: &str) -> String {
    format!("ofa predictor --run {run}{}", images(config))
}

/// The command that extracts the results of searches with these `names`, or all; `flags` are options for the number
/// types of their limits.
pub fn extract(config: &RunConfig, run: &str, names: &[String], flags: &str) -> String {
    let names: String = names.iter().map(|name| format!(" {}", shell::quote(name))).collect();
    format!("ofa extract --run {run} --search-results{names}{flags}{}", images(config))
}

/// Option that names images, in a run that was imported without.
fn images(config: &RunConfig) -> &'static str {
    if config.data.source.is_empty() { " --data DIR" } else { "" }
}

/// Value of `--data` for a command that needs test images: `source`, unless that is empty or a pattern, which often
/// names training shards only.
pub fn test_images(source: &str) -> String {
    if source.is_empty() || is_pattern(source) { "DIR".into() } else { shell::quote(source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::DataConfig;
    use ofa_supernet::SearchSpace;
    use ofa_supernet::train::TrainConfig;

    #[test]
    fn commands_that_cannot_succeed_are_not_named() {
        let space = SearchSpace::named("tiny").unwrap();
        let train = TrainConfig::preset("tiny", &space).unwrap();
        let (only, alone) = train.alone(&space, &space.smallest()).unwrap();
        let mut config = RunConfig { from: None, data: DataConfig::default(), space, train };
        assert_eq!(with_supernet(&config, "run"), ["ofa profile --run run --name this", "ofa predictor --run run"]);
        assert_eq!(
            extract(&config, "run", &["a".into()], " --int8"),
            "ofa extract --run run --search-results a --int8"
        );
        // Without images they are asked for.
        config.data.source = String::new();
        assert_eq!(after_training(&config, "run"), "ofa predictor --run run --data DIR");
        assert_eq!(extract(&config, "run", &[], ""), "ofa extract --run run --search-results --data DIR");
        // A single subnet can neither be profiled nor predicted.
        let config = RunConfig { from: None, data: DataConfig::default(), space: only, train: alone };
        let commands = with_supernet(&config, "run");
        assert!(matches!(&commands[..], [one] if one.starts_with("ofa extract --run run --subnet 'r")), "{commands:?}");
        assert_eq!(["", "DIR/train-{000..011}.tar", "my images"].map(test_images), ["DIR", "DIR", "'my images'"]);
    }
}
