//! `ofa search`

use crate::run_folder::RunFolder;
use crate::{interrupt, progress, table};
use anyhow::{Result, bail};
use ofa_extract::search::{EvolutionSettings, evolve};
use ofa_extract::{Constraint, Limit, Measures, Metric, Predictor, SearchResult};
use ofa_supernet::SearchSpace;
use ofa_supernet::files::write_json;
use std::path::PathBuf;

/// Find the best subnet within each limit: the predictor tells accuracy, device profiles and counting tell cost.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// DEVICE:METRIC=VALUE, e.g. laptop:latency=12ms, any:macs=50M, any:params=3M, any:memory=1MB. Each limit is a search of its own.
    #[arg(long = "limit", required = true)]
    limits: Vec<Constraint>,
    /// All limits hold at once, for one subnet.
    #[arg(long)]
    together: bool,
    #[command(flatten)]
    pub evolution: Evolution,
    /// Seed of the search.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

/// Constants of the evolutionary search.
#[derive(clap::Args)]
pub struct Evolution {
    /// Subnets in each generation.
    #[arg(long, default_value_t = EvolutionSettings::default().population)]
    population: usize,
    /// Generations.
    #[arg(long, default_value_t = EvolutionSettings::default().generations)]
    generations: usize,
    /// Part of the population that has children.
    #[arg(long, default_value_t = EvolutionSettings::default().parent_ratio)]
    parent_ratio: f64,
    /// Part of the children that are mutations; the others are crossovers.
    #[arg(long, default_value_t = EvolutionSettings::default().mutation_ratio)]
    mutation_ratio: f64,
    /// Probability of a mutation of each gene.
    #[arg(long, default_value_t = EvolutionSettings::default().mutation_probability)]
    mutation_probability: f64,
    /// Probability of a mutation of the resolution.
    #[arg(long, default_value_t = EvolutionSettings::default().resolution_mutation_probability)]
    resolution_mutation_probability: f64,
    /// How often a subnet that breaks a limit is drawn anew before it is repaired.
    #[arg(long, default_value_t = EvolutionSettings::default().redraws)]
    redraws: usize,
    /// Choices that the final local search changes at once: 0, 1 or 2.
    #[arg(long, default_value_t = EvolutionSettings::default().local_search)]
    local_search: usize,
}

impl Evolution {
    fn settings(&self) -> EvolutionSettings {
        EvolutionSettings {
            population: self.population,
            generations: self.generations,
            parent_ratio: self.parent_ratio,
            mutation_ratio: self.mutation_ratio,
            mutation_probability: self.mutation_probability,
            resolution_mutation_probability: self.resolution_mutation_probability,
            redraws: self.redraws,
            local_search: self.local_search,
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let folder = RunFolder::new(&args.run);
    let _lock = folder.lock_shared()?;
    let groups: Vec<Vec<Constraint>> = if args.together {
        vec![args.limits.clone()]
    } else {
        args.limits.iter().map(|limit| vec![limit.clone()]).collect()
    };
    let results = search_limits(&folder, &groups, &args.evolution.settings(), args.seed)?;
    if args.json {
        let results: Vec<&SearchResult> = results.iter().map(|(_, result)| result).collect();
        println!("{}", serde_json::to_string_pretty(&results)?);
        return Ok(());
    }
    print_results(&results);
    println!("\nNext: ofa extract --run {} --search-results", args.run.display());
    Ok(())
}

/// Limit, value, predicted accuracy and subnet of each result.
pub fn print_results(results: &[(String, SearchResult)]) {
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|(_, result)| {
            let join = |f: &dyn Fn(&ofa_extract::search::ConstraintValue) -> String| {
                result.constraints.iter().map(f).collect::<Vec<_>>().join(" ")
            };
            vec![
                join(&|c| c.constraint.clone()),
                join(&|c| show_value(c)),
                format!("{:.2} %", 100.0 * result.predicted_accuracy),
                result.evaluations.to_string(),
                format!("{:.2} s", result.seconds),
                result.best.to_string(),
            ]
        })
        .collect();
    table::print(&["limit", "value", "predicted", "evaluations", "time", "subnet"], &rows);
}

fn show_value(value: &ofa_extract::search::ConstraintValue) -> String {
    match value.constraint.parse::<Constraint>() {
        Ok(constraint) => constraint.metric.show(value.value),
        Err(_) => format!("{}", value.value),
    }
}

/// Searches each group of limits and writes `search/NAME.json`; names and results in order.
pub fn search_limits(
    folder: &RunFolder,
    groups: &[Vec<Constraint>],
    settings: &EvolutionSettings,
    seed: u64,
) -> Result<Vec<(String, SearchResult)>> {
    let path = folder.join("predictor/predictor.safetensors");
    if !path.exists() {
        bail!("{}: there is no predictor yet; make one with `ofa predictor`", path.display());
    }
    let predictor = Predictor::load(&path)?;
    let (net, classes) = folder.supernet()?;
    let measures = Measures::new(net.space(), classes.len(), folder.devices()?);
    let mut results = Vec::new();
    for constraints in groups {
        let space = searched_space(net.space(), &predictor, &measures, constraints)?;
        let limits = constraints
            .iter()
            .map(|constraint| Limit::from_constraint(constraint, &measures))
            .collect::<Result<Vec<_>, _>>()?;
        let bar = progress::bar(settings.generations, "generations");
        let result = evolve(
            &space,
            &limits,
            &mut |subnets| {
                if interrupt::requested() {
                    return Err(ofa_supernet::Error::Interrupted.into());
                }
                predictor.predict(subnets)
            },
            settings,
            seed,
            &mut |generation| {
                bar.set_position(generation.generation as u64);
                bar.set_message(format!("best {:.2} %", 100.0 * generation.score));
            },
        )?;
        bar.finish_and_clear();
        let name = constraints.iter().map(Constraint::file_stem).collect::<Vec<_>>().join("+");
        write_json(&folder.join(&format!("search/{name}.json")), &result)?;
        results.push((name, result));
    }
    Ok(results)
}

/// The space with the resolutions that the predictor and all named devices know: imported ones may know only some.
fn searched_space(
    space: &SearchSpace,
    predictor: &Predictor,
    measures: &Measures,
    constraints: &[Constraint],
) -> Result<SearchSpace> {
    let mut searched = space.clone();
    searched.resolutions.retain(|resolution| predictor.space().resolutions.contains(resolution));
    for constraint in constraints.iter().filter(|c| c.metric == Metric::Latency) {
        let known = &measures.device(&constraint.device)?.space.resolutions;
        searched.resolutions.retain(|resolution| known.contains(resolution));
    }
    if searched.resolutions.is_empty() {
        bail!("no resolution of the space '{}' is known to both the predictor and the devices", space.name);
    }
    if searched.resolutions != space.resolutions {
        eprintln!("searching resolutions {:?}: predictor or device know no others", searched.resolutions);
    }
    Ok(searched)
}
