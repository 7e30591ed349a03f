//! Benchmark rows as comma-separated values (RFC 4180).

use super::BenchRow;
use ofa_supernet::files::csv_field;

const HEADER: &str = "model,space,subnet,resolution,dtype,test_images,top1,top5,macs,parameters,file_bytes,\
                      peak_activation_bytes,threads,batch,p50_ms,p90_ms,p99_ms,images_per_second,samples,\
                      buffer_bytes";

/// A header line, and one line per model, number of threads and batch. A model without latencies has one line with
/// empty latency fields; accuracy fields are empty without a test set.
pub fn csv(rows: &[BenchRow]) -> String {
    let mut text = String::from(HEADER);
    text.push('\n');
    for row in rows {
        let accuracy = row.accuracy.map_or_else(|| ",,".to_string(), |a| format!("{},{},{}", a.images, a.top1, a.top5));
        let start = format!(
            "{},{},{},{},{},{accuracy},{},{},{},{}",
            csv_field(&row.model),
            csv_field(&row.space),
            csv_field(&row.subnet.to_string()),
            row.resolution,
            row.dtype,
            row.macs,
            row.parameters,
            row.file_bytes,
            row.peak_activation_bytes
        );
        if row.latencies.is_empty() {
            text.push_str(&format!("{start},,,,,,,,{}\n", row.buffer_bytes));
        }
        for l in &row.latencies {
            text.push_str(&format!(
                "{start},{},{},{},{},{},{},{},{}\n",
                l.threads, l.batch, l.ms.p50, l.ms.p90, l.ms.p99, l.images_per_second, l.samples, row.buffer_bytes
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Latency, TestAccuracy};
    use super::*;
    use crate::latency::Percentiles;
    use crate::model::NumberType;
    use ofa_supernet::space::preset;

    #[test]
    fn every_line_has_every_column_and_texts_are_quoted() {
        let latency = Latency {
            threads: 1,
            batch: 8,
            ms: Percentiles { p50: 4.0, p90: 5.5, p99: 6.0 },
            images_per_second: 2000.0,
            samples: 50,
        };
        let measured = BenchRow {
            model: "a \"b\"".into(),
            space: "tiny".into(),
            subnet: preset("tiny").unwrap().smallest(),
            resolution: 16,
            dtype: NumberType::F16,
            accuracy: Some(TestAccuracy { images: 10, top1: 0.5, top5: 1.0 }),
            classes: Vec::new(),
            macs: 1,
            parameters: 2,
            file_bytes: 3,
            peak_activation_bytes: 4,
            buffer_bytes: 6,
            latencies: vec![latency],
        };
        let bare = BenchRow { accuracy: None, latencies: Vec::new(), model: "c".into(), ..measured.clone() };
        let text = csv(&[measured, bare]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "\"a \"\"b\"\"\",tiny,\"r16 d1,1 k3|3 e2|2\",16,f16,10,0.5,1,1,2,3,4,1,8,4,5.5,6,2000,50,6"
        );
        assert_eq!(lines[2], "c,tiny,\"r16 d1,1 k3|3 e2|2\",16,f16,,,,1,2,3,4,,,,,,,,6");
        // A field's only comma is that of the subnet.
        for line in &lines[1..] {
            assert_eq!(line.matches(',').count() - 1, HEADER.matches(',').count());
        }
    }
}
