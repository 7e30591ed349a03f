//! Answers of the models by class: a confusion matrix where there are few classes, otherwise the classes and the
//! confusions that a reader should know.

use super::Report;
use super::models::ModelRow;
use maud::{Markup, html};
use ofa_evaluate::bench::{ClassAnswers, confusions, worst_first};
use ofa_evaluate::model::cell;
use std::fmt::Write;

/// Most classes of a matrix that is shown as a whole.
const MATRIX: usize = 20;
/// Classes and confusions that are shown of more classes.
const SHOWN: usize = 12;

/// The section about classes of the page; empty without test figures.
pub fn section(report: &Report) -> Markup {
    let models = || report.models.iter().filter(|model| !model.classes.is_empty());
    html! {
        @if models().next().is_some() {
            h2 { "Accuracy by class" }
            p class="small" { "Of test images. A row of a matrix is a class, a column the answer." }
            div class="charts" { @for model in models() { (answers(model)) } }
        }
    }
}

fn answers(model: &ModelRow) -> Markup {
    let classes = &model.classes;
    html! {
        div class="classes" {
            h3 { (model.name) }
            @if classes.len() <= MATRIX { (matrix(classes)) }
            @else {
                p { "The " (SHOWN) " least accurate of " (classes.len()) " classes, and the most frequent confusions." }
                div class="wide" {
                    table {
                        thead { tr { th scope="col" { "class" } th scope="col" { "images" } th scope="col" { "right" } } }
                        @for number in worst_first(classes).into_iter().take(SHOWN) {
                            tr {
                                th scope="row" { (classes[number].class) }
                                td { (classes[number].images) }
                                td { (accuracy(&classes[number], number)) }
                            }
                        }
                    }
                }
                div class="wide" {
                    table {
                        thead { tr { th scope="col" { "class" } th scope="col" { "taken for" } th scope="col" { "images" } } }
                        @for confusion in confusions(classes).into_iter().take(SHOWN) {
                            tr {
                                th scope="row" { (confusion.class) }
                                td { (confusion.answer) }
                                td { (confusion.images) " of " (confusion.of) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The whole matrix, darker where more images of the class are.
fn matrix(classes: &[ClassAnswers]) -> Markup {
    let images = |class: &ClassAnswers, number| {
        class.answers.iter().find(|answer| answer.number == number).map_or(0, |answer| answer.images)
    };
    let shade = |class: &ClassAnswers, images: u64| {
        let share = images as f64 / class.images.max(1) as f64;
        // White text on the darker half.
        let text = if share > 0.5 { ";color:#fff" } else { "" };
        format!("background:rgba(0,114,178,{share:.2}){text}")
    };
    html! {
        div class="wide" {
            table class="matrix" {
                thead {
                    tr {
                        th scope="col" { "class" }
                        th scope="col" { "right" }
                        @for class in classes { th scope="col" { (class.class) } }
                    }
                }
                @for (number, class) in classes.iter().enumerate() {
                    tr {
                        th scope="row" { (class.class) }
                        td { (accuracy(class, number)) }
                        @for answer in 0..classes.len() {
                            @match images(class, answer) {
                                0 => td {},
                                count => td style=(shade(class, count)) { (count) },
                            }
                        }
                    }
                }
            }
        }
    }
}

fn accuracy(class: &ClassAnswers, number: usize) -> String {
    class.accuracy(number).map_or("–".into(), |accuracy| format!("{:.1} %", 100.0 * accuracy))
}

/// The section about classes of a report in Markdown; empty without test figures.
pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    for model in report.models.iter().filter(|model| !model.classes.is_empty()) {
        let classes = &model.classes;
        if text.is_empty() {
            text += "\n## Accuracy by class\n";
        }
        let shown = if classes.len() <= MATRIX { classes.len() } else { SHOWN };
        let which =
            if shown < classes.len() { format!(", the worst {shown} of {}", classes.len()) } else { String::new() };
        let _ = write!(text, "\n### {}{which}\n\n| class | images | right |\n| --- | --- | --- |\n", model.name);
        for number in worst_first(classes).into_iter().take(shown) {
            let class = &classes[number];
            let _ = writeln!(text, "| {} | {} | {} |", cell(&class.class), class.images, accuracy(class, number));
        }
        let confusions = confusions(classes);
        if !confusions.is_empty() {
            text += "\n| class | taken for | images |\n| --- | --- | --- |\n";
        }
        for confusion in confusions.into_iter().take(SHOWN) {
            let (class, answer) = (cell(confusion.class), cell(confusion.answer));
            let _ = writeln!(text, "| {class} | {answer} | {} of {} |", confusion.images, confusion.of);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_evaluate::bench::Score;

    fn of(count: usize) -> Vec<ClassAnswers> {
        let labels: Vec<String> = (0..count).map(|class| format!("<b>class {class}")).collect();
        let mut score = Score::new(count);
        for label in 0..count {
            // Every class is taken once for each of two others, and the last one never is right.
            for (step, times) in [(0, if label + 1 == count { 0 } else { 4 }), (1, 2), (2, 1)] {
                let logits: Vec<f32> = (0..count).map(|c| f32::from(c == (label + step) % count)).collect();
                (0..times).for_each(|_| score.add(&logits, &[label as u32]).unwrap());
            }
        }
        score.by_class(&labels)
    }

    #[test]
    fn few_classes_are_a_matrix_and_names_are_no_markup() {
        let page = matrix(&of(10)).into_string();
        assert_eq!((page.matches("<tr>").count(), page.matches("<b>").count()), (11, 0));
        // Three answers a class, but two for the last one, which is never right.
        assert_eq!(page.matches("background:").count(), 29);
        assert!(page.contains("57.1 %") && page.contains("0.0 %"), "{page}");
    }

    #[test]
    fn of_a_thousand_classes_only_the_worst_are_shown() {
        let classes = of(1000);
        let model = ModelRow { classes, ..super::super::models::tests::row("a", 0.5, 1.0, 1) };
        let page = answers(&model).into_string();
        assert!(page.len() < 10_000 && page.contains("of 1000 classes"), "{} bytes", page.len());
        assert_eq!(page.matches("<tr>").count(), 2 * (SHOWN + 1));
        let first = page.find("class 999").unwrap();
        assert!(page[first..].find("0.0 %").unwrap() < 80);
    }
}
