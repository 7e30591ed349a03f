//! `ofa search --compare`: every strategy with the same budget.

use crate::output::progress::{Bar, counted};
use crate::output::table;
use crate::run_folder::RunFolder;
use crate::search::scorer::{Scorer, limits_of, searched_space};
use anyhow::Result;
use ofa_evaluate::latency::median;
use ofa_extract::effects::EffectsOf;
use ofa_extract::search::SearchSettings;
use ofa_extract::{Constraint, Measures, Problem, search};
use ofa_supernet::Subnet;
use serde_json::{Value, json};

/// Default of `--evaluations`.
const EVALUATIONS: usize = 1000;

/// Settings of a comparison.
pub struct Options {
    pub evaluations: Option<usize>,
    pub seed: u64,
    pub seeds: u64,
}

/// Runs every strategy within `constraints` and prints a table of the results.
pub fn compare(
    folder: &RunFolder,
    measures: &Measures,
    constraints: &[Constraint],
    scorer: &Scorer,
    options: &Options,
) -> Result<Value> {
    let limits = limits_of(constraints, measures)?;
    // The front is drawn against the limited costs.
    let costs: Vec<Constraint> = constraints.iter().map(|c| Constraint { limit: f64::INFINITY, ..c.clone() }).collect();
    let against = limits_of(&costs, measures)?;
    let space = searched_space(folder, measures, scorer, constraints.iter())?;
    let evaluations = options.evaluations.unwrap_or(EVALUATIONS);
    let effects = |subnets: &[Subnet]| scorer.effects(&space, subnets);
    let strategies = SearchSettings::all();
    let mut rows = Vec::new();
    let bar = Bar::new("comparing strategies", strategies.len() * options.seeds as usize, "searches");
    for settings in &strategies {
        let (mut scores, mut seconds, mut scored) = (Vec::new(), Vec::new(), Vec::new());
        for seed in (0..options.seeds).map(|index| options.seed.wrapping_add(index)) {
            let problem = Problem {
                // Other strategies would draw a front too, in place of what they do within limits.
                against: if settings.strategy().needs_costs() { &against[..] } else { &[] },
                evaluations: Some(evaluations),
                effects: scorer.has_effects().then_some(&effects as &EffectsOf),
                ..Problem::new(&space, &limits, seed)
            };
            let mut score = |subnets: &[Subnet]| scorer.score(subnets);
            let result = search(&problem, settings, &mut score, &mut |_| ())?;
            scores.push(result.predicted_accuracy);
            seconds.push(result.seconds);
            scored.push(result.evaluations as f64);
            bar.add(1);
        }
        rows.push((settings.name(), scores, seconds, scored));
    }
    drop(bar);
    let middle = |values: &[f64]| median(values).unwrap_or(f64::NAN);
    rows.sort_by(|a, b| middle(&b.1).total_cmp(&middle(&a.1)));
    // Ranked by unclipped predictions, shown as accuracies.
    for (_, scores, ..) in &mut rows {
        scores.iter_mut().for_each(|score| *score = score.clamp(0.0, 1.0));
    }
    let best = |scores: &[f64]| scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let worst = |scores: &[f64]| scores.iter().copied().fold(f64::INFINITY, f64::min);
    let value = |(name, scores, seconds, scored): &(&str, Vec<f64>, Vec<f64>, Vec<f64>)| {
        json!({
            "strategy": name,
            "best": best(scores),
            "median": middle(scores),
            "worst": worst(scores),
            "seconds": middle(seconds),
            "evaluations": middle(scored),
        })
    };
    let values: Vec<Value> = rows.iter().map(value).collect();
    let cells: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, scores, seconds, scored)| {
            let (best, worst) = (best(&scores), worst(&scores));
            let percent = |value: f64| format!("{:.2} %", 100.0 * value);
            vec![
                name.to_string(),
                percent(best),
                percent(middle(&scores)),
                format!("{:.2} points", 100.0 * (best - worst)),
                format!("{:.3}", middle(&seconds)),
                format!("{:.0}", middle(&scored)),
            ]
        })
        .collect();
    let limit = constraints.iter().map(Constraint::to_string).collect::<Vec<_>>().join(" ");
    let seeds = counted(options.seeds as usize, "seed");
    say!("{limit}, {seeds}, at most {} each", counted(evaluations, "evaluation"));
    table::print(&["strategy", "best", "median", "spread", "seconds", "evaluations"], &cells);
    say!();
    Ok(json!({ "limits": limit, "seeds": options.seeds, "evaluations": evaluations, "strategies": values }))
}
