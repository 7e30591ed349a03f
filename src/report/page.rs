//! The report as one HTML page, which loads nothing.

use super::classes;
use super::models::ModelRow;
use super::text::{PLUS_MINUS, percent};
use super::{Device, Report};
use crate::output::progress::duration;
use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The page of a report.
pub fn page(report: &Report) -> Result<String> {
    let title = format!("Report of {}", report.run);
    let mut devices = Vec::new();
    for device in &report.devices {
        devices.push(device_section(report, device)?);
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body {
                h1 { (title) }
                p { (report.summary()) }
                @for sentence in &report.warnings { p { b { "Warning: " } (sentence) "." } }
                h2 { "Models" }
                @for sentence in &report.advice { p { (sentence) } }
                @if !report.models.is_empty() { (models(report)) }
                @for device in devices { (device) }
                (classes::section(report))
                (predictor_section(report)?)
                (training_section(report)?)
                p class="small" { "Written by ofa " (report.version) ". Point at a mark to see its subnet; a click copies it." }
                div id="hover" {}
                p id="copied" role="status" {}
                script { (PreEscaped(include_str!("page.js"))) }
            }
        }
    };
    Ok(page.into_string())
}

fn models(report: &Report) -> Markup {
    let (header, rows) = (report.columns(), report.models.iter().map(|model| (model, report.cells(model))));
    html! {
        div class="wide" {
            table {
                thead { tr { @for column in &header { th scope="col" { (column) } } } }
                tbody {
                    @for (model, cells) in rows {
                        tr class=[model.dominated_by.is_some().then_some("dominated")] {
                            @for (index, cell) in cells.iter().enumerate() {
                                @if index == 0 { th scope="row" data-copy=(model.subnet) title=(hover(model)) { (cell) } }
                                @else { td { (cell) } }
                            }
                        }
                    }
                }
            }
        }
        p class="small" { (PLUS_MINUS) }
        @if report.has_dominated() {
            p class="small" { "Pale rows: another model is at least as accurate, fast and small." }
        }
    }
}

fn hover(model: &ModelRow) -> String {
    match &model.dominated_by {
        Some(better) => format!("{}; {better} is at least as accurate, fast and small", model.subnet),
        None => model.subnet.to_string(),
    }
}

fn device_section(report: &Report, device: &Device) -> Result<Markup> {
    let slowest: f64 = device.layers.first().map_or(1.0, |layer| layer.ms);
    Ok(html! {
        h2 { "Device " (device.name) }
        p { (report.device_sentence(device)) }
        div class="charts" {
            @if let Some(chart) = report.front_chart(device)? { (chart) }
            @if let Some(chart) = report.latency_chart(device)? { (chart) }
        }
        @if !device.layers.is_empty() {
            h3 { "Slowest layers" }
            div class="wide" {
                table {
                    @for layer in &device.layers {
                        tr {
                            th scope="row" { (layer.layer) }
                            td { (format!("{:.4} ms", layer.ms)) }
                            td class="bar" { div style=(format!("width:{:.0}%", 100.0 * layer.ms / slowest)) {} }
                        }
                    }
                }
            }
        }
    })
}

fn predictor_section(report: &Report) -> Result<Markup> {
    let growth = report.growth_charts()?;
    Ok(html! {
        @if let Some(sentence) = report.predictor_sentence() {
            h2 { "Predictor" }
            p { (sentence) }
            div class="charts" {
                @if let Some(chart) = report.predictor_chart()? { (chart) }
                @for chart in &growth { (chart) }
            }
        }
    })
}

fn training_section(report: &Report) -> Result<Markup> {
    let training = &report.training;
    let charts = report.training_charts()?;
    Ok(html! {
        @if !training.stages.is_empty() {
            h2 { "Training" }
            p {
                "Stages: "
                @for (index, stage) in training.stages.iter().enumerate() {
                    @if index > 0 { ", " }
                    (index + 1) " " (stage.name) " from step " (stage.start)
                }
                "."
                @if let Some(seconds) = training.seconds { " It took " (duration(seconds)) "." }
                @else { " It is not finished." }
                @if let Some(best) = training.best {
                    " The best checkpoint is that of step " (best.step) ", with an accuracy of " (percent(best.accuracy)) "."
                }
            }
            div class="charts" { @for chart in &charts { (chart) } }
        }
    })
}

impl Report {
    /// A sentence about the run.
    pub(super) fn summary(&self) -> String {
        format!(
            "Search space {} ({:.1e} subnets){}. Models: {}, searches: {}, devices: {}.",
            self.space,
            self.subnets,
            self.classes.map_or(String::new(), |classes| format!(", {classes} classes")),
            self.models.len(),
            self.searches.len(),
            self.devices.len()
        )
    }

    pub(super) fn device_sentence(&self, device: &Device) -> String {
        let hardware = device.hardware.as_deref().unwrap_or("unknown hardware");
        let images = if device.batch == 1 { "one image".into() } else { format!("{} images", device.batch) };
        let error = device.error.map_or("the error of its predictions is not known".to_string(), |[median, p95]| {
            format!("error of the predictions: median {}, 95th percentile {}", percent(median), percent(p95))
        });
        format!("{hardware}; {} at a time in {}; {error}.", images, device.number_type)
    }

    pub(super) fn predictor_sentence(&self) -> Option<String> {
        let fit = self.predictor.as_ref()?;
        let tau = fit.kendall_tau.map_or("undefined".into(), |tau| format!("{tau:.3}"));
        let calibration = fit.calibration.as_ref().map_or(String::new(), |calibration| {
            format!("; {} of their accuracies lie in their interval of 90 %", percent(calibration.within_90))
        });
        Some(format!(
            "Fitted to {} subnets. On the {} held-out ones: error {:.2} points (RMSE), Kendall tau {tau}{calibration}.",
            fit.samples,
            fit.held_out,
            100.0 * fit.rmse
        ))
    }
}
