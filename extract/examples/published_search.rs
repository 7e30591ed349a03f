//! The default search with the published predictor and Note10 latency tables: predicted accuracies over ten seeds,
//! and seconds; then all limits in one search.
//!
//! `cargo run --release -p ofa-extract --example published_search -- FOLDER [MILLISECONDS...]`, where FOLDER holds
//! `acc_predictor.pth` and `note10_160_lookup_table.yaml` to `note10_224_lookup_table.yaml`.

use ofa_evaluate::profile::import;
use ofa_extract::search::search_all;
use ofa_extract::{Constraint, Limit, Measures, Predictor, Problem, SearchSettings, search};
use ofa_supernet::{SearchSpace, Subnet};
use std::path::{Path, PathBuf};

const SEEDS: u64 = 10;
/// The program's allocator, for the same times.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Default limits in milliseconds.
const LIMITS: [&str; 12] = ["15", "17", "20", "22", "25", "27", "30", "35", "40", "45", "50", "60"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, limits) = arguments.split_first().ok_or("expected the folder of predictor and latency tables")?;
    let folder = Path::new(folder);
    let limits: Vec<&str> =
        if limits.is_empty() { LIMITS.to_vec() } else { limits.iter().map(String::as_str).collect() };
    let mut space = SearchSpace::named("mbv3-w1.2")?;
    space.resolutions = vec![160, 176, 192, 208, 224];
    let predictor = Predictor::import(&folder.join("acc_predictor.pth"), &space)?;
    let table = |resolution| folder.join(format!("note10_{resolution}_lookup_table.yaml"));
    let tables: Vec<PathBuf> = space.resolutions.iter().map(table).collect();
    let measures = Measures::new(&space, 1000, vec![import(&space, 1000, "note10", &tables)?]);
    let settings = SearchSettings::all().swap_remove(0);
    let effects = |subnets: &[Subnet]| predictor.effects(&space, subnets);
    let within = |limit: &&str| -> Result<Vec<Limit>, Box<dyn std::error::Error>> {
        let constraint: Constraint = format!("note10:latency={limit}ms").parse()?;
        Ok(vec![Limit::from_constraint(&constraint, &measures)?])
    };
    let middle = |sorted: &[f64]| (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    println!("limit     best    median  worst   evaluations  seconds (median, most)");
    for limit in &limits {
        let within = within(limit)?;
        let (mut scores, mut seconds, mut evaluations) = (Vec::new(), Vec::new(), 0);
        for seed in 0..SEEDS {
            let problem = Problem { effects: Some(&effects), ..Problem::new(&space, &within, seed) };
            let mut scorer = |subnets: &[Subnet]| predictor.predict(subnets);
            let found = search(&problem, &settings, &mut scorer, &mut |_| ())?;
            scores.push(found.predicted_accuracy);
            seconds.push(found.seconds);
            evaluations += found.evaluations;
        }
        scores.sort_by(f64::total_cmp);
        seconds.sort_by(f64::total_cmp);
        println!(
            "{:8}  {:.5} {:.5} {:.5} {:12}  {:.3} {:.3}",
            format!("{limit}ms"),
            scores[scores.len() - 1],
            middle(&scores),
            scores[0],
            evaluations / SEEDS as usize,
            middle(&seconds),
            seconds[seconds.len() - 1],
        );
    }
    let all = limits.iter().map(within).collect::<Result<Vec<_>, _>>()?;
    let problem = Problem { effects: Some(&effects), others: &all[1..], ..Problem::new(&space, &all[0], 0) };
    let mut seconds = Vec::new();
    println!("all limits in one search");
    for repetition in 0..SEEDS {
        let mut scorer = |subnets: &[Subnet]| predictor.predict(subnets);
        let found = search_all(&problem, &settings, &mut scorer, &mut |_| ())?;
        seconds.push(found[0].seconds);
        if repetition == 0 {
            limits.iter().zip(&found).for_each(|(limit, found)| {
                println!("{:8}  {:.5} {:12}", format!("{limit}ms"), found.predicted_accuracy, found.evaluations);
            });
        }
    }
    seconds.sort_by(f64::total_cmp);
    println!("seconds: median {:.3}, most {:.3}", middle(&seconds), seconds[seconds.len() - 1]);
    Ok(())
}
